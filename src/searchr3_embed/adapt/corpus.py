"""The documents of a corpus: ids, texts and the encoder's vectors, which stay as they are."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from searchr3_embed.adapt.same_text import document_key, query_key
from searchr3_embed.files import check_unicode, shorten
from searchr3_embed.search import passages as reading
from searchr3_embed.search.vector_cache import cached_vectors, document_fingerprint

if TYPE_CHECKING:
    from searchr3_embed.adapt.vector_sources import StoredVectors
    from searchr3_embed.embedder import ReasoningEmbedder

logger = logging.getLogger(__name__)

JSONL_SUFFIXES = (".jsonl", ".ndjson")


@dataclasses.dataclass(frozen=True)
class Documents:
    """The documents of a corpus.

    Attributes:
        ids: Different from one another.
        texts: What is embedded, in the same order.
        bare: The texts without their titles, where they have some; what a pair may show instead.
        source: What the vector cache calls them.
        dropped: What was left out, by the reason, with the ids.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    bare: tuple[str, ...]
    source: str
    dropped: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @cached_property
    def by_id(self) -> dict[str, int]:
        """The row of each id."""
        return {identifier: row for row, identifier in enumerate(self.ids)}

    @cached_property
    def _by_text(self) -> tuple[dict[str, int], dict[str, int | None]]:
        exact: dict[str, int] = {}
        near: dict[str, int | None] = {}
        for texts in (self.texts, self.bare):
            for row, text in enumerate(texts):
                exact.setdefault(document_key(text), row)
                key = query_key(text)
                # Two documents of the same letters: which one is meant can't be told.
                near[key] = row if near.get(key, row) == row else None
        return exact, near

    def row_of_text(self, text: str) -> int | None:
        """The row of a text, white space aside, and where that is clear signs aside; None if it is absent."""
        exact, near = self._by_text
        found = exact.get(document_key(text))
        return near.get(query_key(text)) if found is None else found


def documents_of(given: Any) -> Documents:
    """Documents from what a caller has.

    Args:
        given: A path; a mapping of ids to texts; a sequence of ``Passage``, of texts (their ids are ``"0"``, ``"1"``
            ...) or of pairs of id and text.

    Raises:
        TypeError: It is something else.
        ValueError: There is no document, two share an id, or a text can't be embedded.
        CorpusError: A path can't be read.
    """
    if isinstance(given, Documents):
        return given
    if isinstance(given, str | os.PathLike):
        return read_documents(Path(given))
    if isinstance(given, Mapping):
        return _checked((str(key), text, text) for key, text in given.items())
    if not isinstance(given, Iterable):
        raise TypeError(
            "documents must be a path, a mapping of ids to texts or a sequence of texts, got "
            f"{shorten(repr(given), 80)} of type {type(given).__name__}."
        )
    rows = []
    for number, item in enumerate(given):
        if isinstance(item, reading.Passage):
            rows.append((item.id, item.content, item.text))
        elif isinstance(item, tuple) and len(item) == 2:
            rows.append((str(item[0]), item[1], item[1]))
        else:
            rows.append((str(number), item, item))
    return _checked(rows)


def read_documents(path: Path, field: str = "text") -> Documents:
    """The passages of a folder, a text file or a JSONL file, as ``searchr3 search`` reads them.

    Raises:
        CorpusError: It can't be read.
        ValueError: Two passages share an id.
    """
    identity = os.path.realpath(path)
    if path.is_dir():
        found = reading.read_folder(path)
    elif not path.exists():
        raise reading.CorpusError(f"{path}: no such folder or file")
    elif path.suffix.lower() in JSONL_SUFFIXES:
        found, identity = reading.read_jsonl(path, field=field), f"{identity}#{field}"
    elif path.suffix.lower() in reading.TEXT_SUFFIXES:
        found = reading.read_file(path)
    else:
        accepted = ", ".join([*JSONL_SUFFIXES, *sorted(reading.TEXT_SUFFIXES)])
        raise reading.CorpusError(f"{path}: expected a folder or a file ending in {accepted}")
    return _checked(((item.id, item.content, item.text) for item in found), identity)


def _checked(rows: Iterable[tuple[str, Any, Any]], source: str = "adapt") -> Documents:
    ids: list[str] = []
    texts: list[str] = []
    bare: list[str] = []
    seen: set[str] = set()
    empty: list[str] = []
    for identifier, text, own in rows:
        if not isinstance(text, str):
            raise TypeError(f"Document {identifier!r} is {shorten(repr(text), 80)}; a text is a str.")
        if identifier in seen:
            raise ValueError(f"Two documents have the id {identifier!r}; ids must be different.")
        seen.add(identifier)
        if not text.strip():
            empty.append(identifier)
            continue
        ids.append(identifier)
        texts.append(check_unicode(text, f"Document {identifier!r}"))
        bare.append(own)
    if not ids:
        raise ValueError("There are no documents" + (" but empty ones." if empty else "."))
    dropped = {"empty document": tuple(empty)} if empty else {}
    return Documents(tuple(ids), tuple(texts), tuple(bare), source, dropped)


def vectors_of(
    embedder: ReasoningEmbedder,
    documents: Documents,
    stored: StoredVectors | None,
    cache_folder: str | os.PathLike[str] | None,
    batch_size: int = 32,
) -> tuple[np.ndarray, Counter[str]]:
    """The encoder's vectors of all documents, from where they are stored, from the cache, or computed now.

    Args:
        embedder: Its encoder made the stored vectors, which is checked.
        documents: What the vectors belong to.
        stored: Vectors that somebody has; None for none.
        cache_folder: Where computed vectors are kept; None for nowhere.
        batch_size: Texts at once.

    Returns:
        Float32 of shape (documents, dimension), and where they came from.

    Raises:
        ValueError: Stored vectors are not those of this encoder and these texts.
    """
    origin: Counter[str] = Counter()
    rows: dict[int, np.ndarray] = {}
    if stored is not None:
        rows = stored.rows_for(documents)
        origin["from " + stored.name] = len(rows)
        if extra := len(stored.vectors) - len(rows):
            origin[f"in {stored.name} for other documents"] = extra
        if rows:
            sample = sorted(rows)
            check = embedder.check_index([documents.texts[row] for row in sample], [rows[row] for row in sample])
            if not check:
                raise ValueError(f"{stored.name}: {check.message} Documents that changed have to be embedded again.")
    missing = [row for row in range(len(documents.ids)) if row not in rows]
    if missing:
        found, reused, encoded = _embedded(
            embedder, [documents.texts[row] for row in missing], documents.source, cache_folder, batch_size
        )
        rows.update(zip(missing, found, strict=True))
        origin["from the cache"], origin["embedded now"] = reused, encoded
    vectors = np.stack([rows[row] for row in range(len(documents.ids))]).astype(np.float32, copy=False)
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise ValueError(f"The vector of document {documents.ids[row]!r} is not finite.")
    return vectors, +origin


def _embedded(
    embedder: ReasoningEmbedder,
    texts: Sequence[str],
    source: str,
    folder: str | os.PathLike[str] | None,
    batch_size: int,
) -> tuple[np.ndarray, int, int]:
    from tqdm import tqdm

    def encode(some: list[str]) -> np.ndarray:
        return embedder.encode_document(some, batch_size=batch_size, show_progress_bar=False)

    with tqdm(total=len(texts), desc="Embedding documents", delay=1) as bar:
        found = cached_vectors(
            texts,
            encode,
            folder=folder,
            source=source,
            fingerprint=document_fingerprint(embedder),
            probes=embedder.probe(),
            progress=bar.update,
        )
    return found.vectors, found.reused, found.encoded
