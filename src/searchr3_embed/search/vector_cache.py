"""Document vectors that are kept between runs, so that only new and changed texts are encoded.

One file holds the vectors of one source (a folder, a file) under one model. Vectors are found by a hash of the text,
not by position or name: an edited, moved or added text costs one encoding and the others nothing. A file that cannot
be read, whatever the reason, is the same as no file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs

from searchr3_embed.encoder_identity import same_space
from searchr3_embed.files import replacing

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder

logger = logging.getLogger(__name__)

_FORMAT = 2  # 1, of version 0.1.0, did not say which encoder it was
_KEY_BYTES = 16
# Texts encoded at a time, between two steps of the progress.
_CHUNK = 256
# Seconds until the first vectors are written to the cache, and at least between two writings.
_FIRST_SAVE, _SAVE_EVERY = 1.0, 5.0
_PROBE = "Does a probe with CamelCase, naïve 数字 123 and <|embed_token|> read the same?"
# Values taken from each weight for the fingerprint: training moves all of them, so a sample tells models apart.
_SAMPLE = 65536


@dataclasses.dataclass(frozen=True)
class CachedVectors:
    """Vectors of a list of texts, and where they come from.

    Attributes:
        vectors: Shape (texts, d), float32, in the order of the texts.
        reused: How many texts were found in the cache.
        encoded: How many different texts had to be encoded.
        path: The cache file; None without a cache.
    """

    vectors: np.ndarray
    reused: int
    encoded: int
    path: Path | None


def default_cache_folder() -> Path | None:
    r"""The folder for this program's caches by the custom of the platform; it need not exist yet.

    ``$XDG_CACHE_HOME/searchr3`` (or ``~/.cache/searchr3``) on Linux, ``~/Library/Caches/searchr3`` on macOS,
    ``%LOCALAPPDATA%\searchr3\Cache`` on Windows. None where the user has no home folder.
    """
    try:
        folder = platformdirs.user_cache_path("searchr3", appauthor=False)
    except RuntimeError:
        return None
    return folder if folder.is_absolute() else None  # what older versions of platformdirs return without a home


def document_fingerprint(embedder: ReasoningEmbedder) -> str:
    """A hash of what turns a document into a vector.

    Of an encoder with a thinker that is the encoder alone: its name, what it reads of a text, and how long it reads.
    Its weights are told by the probe vectors, which ``cached_vectors`` compares: a copy in half precision keeps what
    is cached, and so does a thinker that was trained further. Of a single model it is the weights as loaded, the
    tokenizer and the direct turn. It does not depend on where the model came from.
    """
    import torch

    digest = hashlib.sha256(embedder.encoder_name.encode("utf-8", "surrogatepass"))
    if embedder.question_side is None:
        for name, weight in sorted(embedder.causal_lm.state_dict().items()):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
            values = weight.detach().reshape(-1)
            values = values[:: max(1, -(-values.numel() // _SAMPLE))].contiguous().cpu()
            digest.update(values.view(torch.uint8).numpy().tobytes())
    backend = getattr(embedder.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        vocabulary = json.loads(backend.to_str())
        # Whatever the last call cut and padded to.
        vocabulary |= {"truncation": None, "padding": None}
        digest.update(json.dumps(vocabulary, sort_keys=True).encode())
    turn = embedder.conversation.direct_ids([_PROBE])[0] if embedder.question_side is None else []
    settings = [embedder.max_seq_length, embedder.truncate_dim, embedder.prompts, embedder.default_prompt_name]
    digest.update(json.dumps([turn, settings], sort_keys=True).encode())
    return digest.hexdigest()


def cached_vectors(
    texts: Sequence[str],
    encode: Callable[[list[str]], np.ndarray],
    *,
    folder: str | os.PathLike[str] | None,
    source: str,
    fingerprint: str,
    probes: np.ndarray,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int], object] | None = None,
) -> CachedVectors:
    """Return the vectors of texts, encoding those that the cache does not hold.

    What is new is written to the cache every few seconds and at the end, so that interrupted work goes on about where
    it stopped; texts that are gone from the source are dropped. The file is replaced as a whole, never half written,
    and only its owner can read it: vectors tell a lot about their texts. A cache folder that cannot be written costs a
    warning in the log, not the result.

    Args:
        texts: What to embed.
        encode: Turns a list of texts into an array of shape (texts, d).
        folder: The cache folder, made when missing; None to keep nothing.
        source: What the texts are, for example the absolute path of a folder; texts of different sources are kept in
            different files.
        fingerprint: Stands for the model, see ``document_fingerprint``.
        probes: The model's vectors of the probe texts, see ``encoder_identity``. Vectors that were kept by a model
            with other ones are not used, and the log says so.
        settings: Whatever else changes the vectors; must be serialisable as JSON.
        progress: Called with the number of texts that are ready since the last call.
    """
    identity = json.dumps([_FORMAT, fingerprint, source, settings or {}], sort_keys=True)
    path = None if folder is None else _cache_path(Path(folder), source, identity)
    keys = [_text_key(text) for text in texts]
    counts = Counter(keys)
    if path is not None and not path.exists():
        _report_former_vectors(path, source)
    stored = {} if path is None else _load(path, identity, probes)
    rows = {key: vector for key, vector in stored.items() if key in counts}
    reused = sum(counts[key] for key in rows)
    if progress is not None:
        progress(reused)
    # Longest first: batches of similar lengths waste less, and what does not fit in memory shows at once.
    missing = sorted(
        {key: text for key, text in zip(keys, texts, strict=True) if key not in rows}.items(),
        key=lambda item: (-len(item[1]), item[0]),
    )
    keeper = None if path is None else _Keeper(path, identity, probes, unsaved=len(rows) != len(stored))
    try:
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            rows.update(_encode_chunk(chunk, encode))
            if progress is not None:
                progress(sum(counts[key] for key, _ in chunk))
            if keeper is not None:
                keeper.added(rows)
    finally:
        if keeper is not None:
            keeper.finish(rows)
    vectors = np.stack([rows[key] for key in keys]) if keys else np.zeros((0, 0), dtype=np.float32)
    return CachedVectors(vectors, reused, len(missing), path)


def _encode_chunk(
    chunk: Sequence[tuple[bytes, str]], encode: Callable[[list[str]], np.ndarray]
) -> dict[bytes, np.ndarray]:
    vectors = np.asarray(encode([text for _, text in chunk]), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(chunk):
        raise ValueError(f"encode must return one vector a text, got shape {vectors.shape} for {len(chunk)}")
    return dict(zip((key for key, _ in chunk), vectors, strict=True))


class _Keeper:
    """Decides when vectors are written to their cache file while more of them are made.

    A process that is killed loses the work of a few seconds, and writing takes a twentieth of the time at most.
    """

    def __init__(self, path: Path, identity: str, probes: np.ndarray, *, unsaved: bool) -> None:
        self._path, self._identity, self._probes, self._unsaved = path, identity, probes, unsaved
        self._due = time.monotonic() + _FIRST_SAVE
        self._writable = True  # one warning is enough

    def added(self, rows: Mapping[bytes, np.ndarray]) -> None:
        self._unsaved = True
        began = time.monotonic()
        if began >= self._due:
            self.finish(rows)
            ended = time.monotonic()
            self._due = ended + max(_SAVE_EVERY, 19 * (ended - began))

    def finish(self, rows: Mapping[bytes, np.ndarray]) -> None:
        if self._unsaved and self._writable:
            self._writable = _save(self._path, self._identity, self._probes, rows)
            self._unsaved = False


def _text_key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()


def _cache_path(folder: Path, source: str, identity: str) -> Path:
    readable = re.sub(r"[^A-Za-z0-9]+", "-", os.path.basename(os.path.normpath(source)))[:32].strip("-") or "texts"
    return folder / f"{readable}-{hashlib.sha256(identity.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}.npz"


def _report_former_vectors(path: Path, source: str) -> None:
    """Says once, before a source is embedded again, that its vectors of version 0.1.0 are of another space."""
    for former in sorted(path.parent.glob(f"{path.name.rpartition('-')[0]}-*.npz")):
        try:
            with np.load(former, allow_pickle=False) as arrays:
                written_for = json.loads(str(arrays["identity"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError):
            continue
        if isinstance(written_for, list) and written_for[:1] + written_for[2:3] == [1, source]:
            logger.warning(
                "The vectors that version 0.1.0 kept in %s are of another space and are not used: the documents are "
                "embedded again, once.",
                former,
            )
            return


def _load(path: Path, identity: str, probes: np.ndarray) -> dict[bytes, np.ndarray]:
    """The vectors of a cache file by the key of their text; empty when there is no usable file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:  # reading checks the checksum of each array
            keys, vectors, written_for = arrays["keys"], arrays["vectors"], str(arrays["identity"])
            made_by = arrays["probes"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        logger.warning("The cache file %s cannot be read (%s) and is made again.", path, error or type(error).__name__)
        return {}
    sound = (
        written_for == identity
        and keys.dtype == np.uint8
        and keys.ndim == vectors.ndim == 2
        and keys.shape == (len(vectors), _KEY_BYTES)
        and vectors.dtype == np.float32
        and bool(np.isfinite(vectors).all())
    )
    if not sound:
        logger.warning("The cache file %s does not hold what it should and is made again.", path)
        return {}
    if not same_space(probes, made_by):
        logger.warning(
            "The vectors kept in %s were made by another encoder of the same name: none is used, all are made again.",
            path,
        )
        return {}
    return {key.tobytes(): vector for key, vector in zip(keys, vectors, strict=True)}


def _save(path: Path, identity: str, probes: np.ndarray, rows: Mapping[bytes, np.ndarray]) -> bool:
    """Write the cache file; False, after a warning, if that is not possible."""
    keys = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), _KEY_BYTES)
    vectors = np.stack(list(rows.values())) if rows else np.zeros((0, 0), dtype=np.float32)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path, private=True) as file:
            np.savez(file, keys=keys, vectors=vectors, identity=np.array(identity), probes=probes)
    except OSError as error:
        logger.warning("The document vectors cannot be kept in %s: %s.", path.parent, error.strerror or error)
        return False
    return True
