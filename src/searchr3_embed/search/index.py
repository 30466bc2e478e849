"""Passages that can be searched: document vectors from the cache in a FAISS index."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from searchr3_embed.search.passages import Passage
from searchr3_embed.search.vector_cache import cached_vectors, document_fingerprint

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder
    from searchr3_embed.reasoning_trace import Reasoning

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Hit:
    """A passage that was found, with its score (cosine similarity)."""

    passage: Passage
    score: float

    @property
    def summary(self) -> str:
        """The passage in one line, without the line that only repeats its title."""
        title, text = self.passage.title, self.passage.text
        first, _, rest = text.partition("\n")
        return " ".join((rest if title and title in first and rest.strip() else text).split())


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one question found.

    Attributes:
        question: The question.
        reasoning: What the model thought, None where it was not to think.
        hits: Best first.
        embed_seconds: Time to think and embed, or to embed alone.
        search_seconds: Time to look through the index.
    """

    question: str
    reasoning: Reasoning | None
    hits: list[Hit]
    embed_seconds: float
    search_seconds: float


@dataclasses.dataclass(frozen=True)
class PassageIndex:
    """Passages, and the exact inner product index over their vectors.

    Attributes:
        embedder: The model.
        passages: Row i of the index is passage i.
        flat_index: The FAISS index.
        reused: How many vectors came from the cache.
        encoded: How many texts were encoded.
        seconds: Time to encode, read and write the cache, and fill the index.
        cache_file: Where the vectors are kept; None where they are not.
    """

    embedder: ReasoningEmbedder
    passages: Sequence[Passage]
    flat_index: Any
    reused: int
    encoded: int
    seconds: float
    cache_file: Path | None

    @property
    def origin(self) -> str:
        """Where the vectors came from: ``indexed in 81.2 s``, ``vectors from the cache in 0.9 s`` ..."""
        if not self.encoded:
            return f"vectors from the cache in {self.seconds:.1f} s"
        if not self.reused:
            return f"indexed in {self.seconds:.1f} s"
        return f"indexed in {self.seconds:.1f} s ({self.encoded:,} encoded, {self.reused:,} from the cache)"

    def ask(
        self,
        question: str,
        *,
        top_k: int = 5,
        reason: bool = True,
        max_reasoning_tokens: int | None = None,
    ) -> Answer:
        """Embed a question, with or without thinking, and find the passages nearest to it."""
        start = time.perf_counter()
        reasoning = None
        if reason:
            reasoning = self.embedder.reason(question, max_reasoning_tokens=max_reasoning_tokens)
            vector = reasoning.embedding
        else:
            vector = self.embedder.encode_query(question, reason=False, show_progress_bar=False)
        embedded = time.perf_counter()
        scores, rows = self.flat_index.search(
            np.ascontiguousarray(vector, dtype=np.float32)[None], min(top_k, len(self.passages))
        )
        found = time.perf_counter()
        hits = [Hit(self.passages[row], float(score)) for row, score in zip(rows[0], scores[0], strict=True)]
        return Answer(question, reasoning, hits, embedded - start, found - embedded)


def build_index(
    embedder: ReasoningEmbedder,
    passages: Sequence[Passage],
    *,
    source: str,
    cache_folder: str | os.PathLike[str] | None,
    batch_size: int = 32,
    progress: Callable[[int], object] | None = None,
) -> PassageIndex:
    """Embed passages, as far as the cache does not hold their vectors, and index them.

    Args:
        embedder: The model.
        passages: At least one passage.
        source: What the passages are, see ``cached_vectors``.
        cache_folder: Where the vectors are kept; None to keep them nowhere, and say so in the log.
        batch_size: Most passages in one forward pass.
        progress: Called with the number of passages that are ready since the last call.
    """
    start = time.perf_counter()
    if cache_folder is None:
        logger.warning("There is no home folder: the document vectors are not kept.")

    def encode(texts: list[str]) -> np.ndarray:
        vectors = embedder.encode_document(texts, batch_size=batch_size, show_progress_bar=False)
        # The longest texts come first: one warning about texts that are too long is representative, ten are noise.
        if embedder.on_truncate == "warn":
            embedder.on_truncate = "ignore"
        return vectors

    on_truncate = embedder.on_truncate
    try:
        cached = cached_vectors(
            [passage.content for passage in passages],
            encode,
            folder=cache_folder,
            source=source,
            fingerprint=document_fingerprint(embedder),
            probes=embedder.probe(),
            progress=progress,
        )
    finally:
        embedder.on_truncate = on_truncate
    faiss = _import_faiss()
    flat_index = faiss.IndexFlatIP(cached.vectors.shape[1])
    flat_index.add(cached.vectors)
    seconds = time.perf_counter() - start
    return PassageIndex(embedder, passages, flat_index, cached.reused, cached.encoded, seconds, cached.path)


def _import_faiss() -> Any:
    """FAISS, set up so that it lives beside torch.

    On macOS both bring an OpenMP runtime of their own: the second to be loaded aborts the process, or crashes in its
    first parallel region. Exact search over thousands of vectors needs no threads.
    """
    if sys.platform == "darwin":
        os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
    import faiss

    if sys.platform == "darwin":
        faiss.omp_set_num_threads(1)
    return faiss
