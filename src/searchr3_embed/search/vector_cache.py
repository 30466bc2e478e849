"""Document vectors that are kept between runs, so that only new and changed texts are encoded.

One file holds the vectors of one source (a folder, a file) under one model. Vectors are found by a hash of the text,
not by position or name: an edited, moved or added text costs one encoding and the others nothing. A file that cannot
be read, whatever the reason, is the same as no file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder

logger = logging.getLogger(__name__)

_FORMAT = 1
_KEY_BYTES = 16
# Texts encoded at a time, between two steps of the progress.
_CHUNK = 256
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
        path: The cache file.
    """

    vectors: np.ndarray
    reused: int
    encoded: int
    path: Path


def default_cache_folder() -> Path:
    r"""The folder for this program's caches by the custom of the platform; it need not exist yet.

    ``$XDG_CACHE_HOME/searchr3`` (or ``~/.cache/searchr3``) on Linux, ``~/Library/Caches/searchr3`` on macOS,
    ``%LOCALAPPDATA%\searchr3\Cache`` on Windows.
    """
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "searchr3" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "searchr3"
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is invalid and to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "searchr3"


def model_fingerprint(embedder: ReasoningEmbedder) -> str:
    """A hash of what turns a text into a vector: the weights as loaded, the tokenizer and the direct turn.

    It does not depend on where the model came from, so a copied folder keeps its cached vectors, and a retrained one
    under the same name loses them. Large weights are sampled, which makes it fast for models of any size.
    """
    import torch

    digest = hashlib.sha256()
    for name, weight in sorted(embedder.causal_lm.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        values = weight.detach().reshape(-1)
        values = values[:: max(1, -(-values.numel() // _SAMPLE))].contiguous().cpu()
        digest.update(values.view(torch.uint8).numpy().tobytes())
    backend = getattr(embedder.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        digest.update(backend.to_str().encode("utf-8", "surrogatepass"))
    turn = embedder.conversation.direct_ids([_PROBE])[0]
    settings = [embedder.max_seq_length, embedder.truncate_dim, embedder.prompts, embedder.default_prompt_name]
    digest.update(json.dumps([turn, settings], sort_keys=True).encode())
    return digest.hexdigest()


def cached_vectors(
    texts: Sequence[str],
    encode: Callable[[list[str]], np.ndarray],
    *,
    folder: str | os.PathLike[str],
    source: str,
    fingerprint: str,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int], object] | None = None,
) -> CachedVectors:
    """Return the vectors of texts, encoding those that the cache does not hold.

    What is new is written to the cache at the end, also when the work is interrupted, so that it goes on where it
    stopped; texts that are gone from the source are dropped. The file is replaced as a whole, never half written. A
    cache folder that cannot be written costs a warning in the log, not the result.

    Args:
        texts: What to embed.
        encode: Turns a list of texts into an array of shape (texts, d).
        folder: The cache folder; made when missing.
        source: What the texts are, for example the absolute path of a folder; texts of different sources are kept in
            different files.
        fingerprint: Stands for the model, see ``model_fingerprint``.
        settings: Whatever else changes the vectors; must be serialisable as JSON.
        progress: Called with the number of texts that are ready since the last call.
    """
    identity = json.dumps([_FORMAT, fingerprint, source, settings or {}], sort_keys=True)
    path = _cache_path(Path(folder), source, identity)
    keys = [_text_key(text) for text in texts]
    known = _load(path, identity)
    wanted = set(keys)
    reused = sum(key in known for key in keys)
    if progress is not None:
        progress(reused)
    # Longest first: batches of similar lengths waste less, and what does not fit in memory shows at once.
    missing = sorted(
        {key: text for key, text in zip(keys, texts, strict=True) if key not in known}.items(),
        key=lambda item: (-len(item[1]), item[0]),
    )
    counts: dict[bytes, int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    fresh: dict[bytes, np.ndarray] = {}
    try:
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            vectors = np.asarray(encode([text for _, text in chunk]), dtype=np.float32)
            if vectors.ndim != 2 or len(vectors) != len(chunk):
                raise ValueError(f"encode must return one vector a text, got shape {vectors.shape} for {len(chunk)}")
            fresh.update(zip((key for key, _ in chunk), vectors, strict=True))
            if progress is not None:
                progress(sum(counts[key] for key, _ in chunk))
    finally:
        rows = {key: vector for key, vector in {**known, **fresh}.items() if key in wanted}
        if fresh or len(rows) != len(known):
            _save(path, identity, rows)
    vectors = np.stack([rows[key] for key in keys]) if keys else np.zeros((0, 0), dtype=np.float32)
    return CachedVectors(vectors, reused, len(missing), path)


def _text_key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()


def _cache_path(folder: Path, source: str, identity: str) -> Path:
    readable = re.sub(r"[^A-Za-z0-9]+", "-", os.path.basename(os.path.normpath(source)))[:32].strip("-") or "texts"
    return folder / f"{readable}-{hashlib.sha256(identity.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}.npz"


def _load(path: Path, identity: str) -> dict[bytes, np.ndarray]:
    """The vectors of a cache file by the key of their text; empty when there is no usable file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:  # reading checks the checksum of each array
            keys, vectors, written_for = arrays["keys"], arrays["vectors"], str(arrays["identity"])
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
    return {key.tobytes(): vector for key, vector in zip(keys, vectors, strict=True)}


def _save(path: Path, identity: str, rows: Mapping[bytes, np.ndarray]) -> None:
    keys = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), _KEY_BYTES)
    vectors = np.stack(list(rows.values())) if rows else np.zeros((0, 0), dtype=np.float32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, keys=keys, vectors=vectors, identity=np.array(identity))
    except OSError as error:
        logger.warning("The document vectors cannot be kept in %s: %s.", path.parent, error.strerror or error)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when it is complete.

    Whatever stops the writing, a crash of the machine aside, there is afterwards either the whole new file or what was
    there before.

    Raises:
        OSError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
