"""The embedder of a server: loading, the first call that warms it up, and how a batch is computed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from searchr3_embed.server.queues import Embedded, OnToken, Wish
from searchr3_embed.server.settings import Settings

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder

_WARM_UP = ["what is a glacier?", "A glacier is a slow river of ice."]
# Rows of a batch of documents, the best of those that were measured (benchmarks/README.md, W4).
_DOCUMENT_ROWS = 32


def load(settings: Settings) -> ReasoningEmbedder:
    """Loads the model that the settings name.

    Raises:
        CheckpointError: It can't be found, is damaged, or was never trained to embed.
    """
    from searchr3_embed.embedder import ReasoningEmbedder

    # What is cut is said in each reply.
    return ReasoningEmbedder(settings.model, device=settings.device, on_truncate="ignore")


def warm_up(embedder: ReasoningEmbedder) -> None:
    """The first calls, which are slower than the others."""
    embedder.encode_document(_WARM_UP, show_progress_bar=False)
    embedder.encode_query(_WARM_UP, show_progress_bar=False)


def compute(
    embedder: ReasoningEmbedder, wish: Wish, texts: list[str], words: list[str] | None, on_token: OnToken | None
) -> Sequence[Embedded]:
    """Embeds texts; the only place where a server calls its embedder.

    Args:
        embedder: The embedder.
        wish: What is wanted.
        texts: At least one.
        words: Where the wish says so, the reasoning of each text.
        on_token: Told of each token that is written.
    """
    if wish.kind == "document":
        rows = embedder.encode_document(
            texts,
            batch_size=_DOCUMENT_ROWS,
            show_progress_bar=False,
            reason=wish.reason,
            max_reasoning_tokens=wish.budget,
        )
        return [Embedded(vector) for vector in rows]
    if not wish.reason:
        rows = embedder.encode_query(texts, batch_size=len(texts), show_progress_bar=False, reason=False)
        return [Embedded(vector) for vector in rows]
    traces = embedder.reason(
        texts,
        reasoning=words if wish.given else None,
        batch_size=len(texts),
        max_reasoning_tokens=wish.budget,
        on_token=on_token,
    )
    return [Embedded(trace.embedding[: embedder.truncate_dim], trace) for trace in traces]


def cut(vector: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The first dimensions of a vector, of length 1 again; the vector as it is where none are asked for."""
    if dimensions is None or dimensions == len(vector):
        return vector
    part = vector[:dimensions]
    length = np.linalg.norm(part)
    return part / length if length > 0 else part


class RecentQuestions:
    """Vectors of the questions that were asked last, by question and wish.

    Args:
        most: How many are kept; with 0, none.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[tuple[Wish, str, str | None], Embedded] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, wish: Wish, texts: Sequence[str], words: Sequence[str] | None) -> list[Embedded | None]:
        """What is remembered of each text."""
        if not self.most or wish.kind != "query":
            return [None] * len(texts)
        found = []
        with self._lock:
            for place, text in enumerate(texts):
                key = (wish, text, words[place] if words else None)
                if key in self._kept:
                    self._kept.move_to_end(key)
                found.append(self._kept.get(key))
        return found

    def keep(self, wish: Wish, texts: Sequence[str], words: Sequence[str] | None, found: Sequence[Embedded]) -> None:
        """Remembers what was computed, and forgets what was asked longest ago."""
        if not self.most or wish.kind != "query":
            return
        with self._lock:
            for place, embedded in enumerate(found):
                self._kept[wish, texts[place], words[place] if words else None] = embedded
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
