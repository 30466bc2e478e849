"""Vectors of an encoder that nobody touches: computed once, kept on disk, memory-mapped.

A file belongs to texts, by their digest, and to an encoder, by its vectors of a few of them; so runs can share a
folder of files. It is written block by block, and a run that was killed while writing goes on behind the last whole
block.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from searchr3_embed.encoder_identity import PROBES
from searchr3_embed.files import write_json

# Texts between two notes of how far it is: losing one block costs seconds.
_BLOCK = 2048
# Vectors of one encoder differ by less, those of two encoders by more.
_SAME = 1e-3


def reserve(path: Path) -> None:
    """Takes all of a file's place on the disk now, where the platform can.

    A memory map is written to as memory is: a disk that turns out to be full would end the process without a word.

    Args:
        path: The file, of its final size; removed if there is no place for it.

    Raises:
        OSError: The disk is full; ``filename`` is the path.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    return  # a file system that can't reserve
                path.unlink()
                error.filename = str(path)
                raise


def vectors_on_disk(encode: Callable[[list[str]], Any], texts: Sequence[str], folder: Path, what: str) -> np.ndarray:
    """The vectors of texts, from disk or computed now.

    Args:
        encode: Gives float vectors of shape (texts, dimension).
        texts: What to embed, in order.
        folder: Of the files.
        what: What the texts are, for the progress bar and the file's name.

    Returns:
        Float32 memory map of shape (texts, dimension), read-only.

    Raises:
        FloatingPointError: A vector is not finite.
        OSError: The folder can't be written.
    """
    # Vectors tell encoders apart, and the longest text how much of it they read.
    identity = np.asarray(encode([*PROBES, max(texts, key=len, default="")]), dtype=np.float32)
    shape = (len(texts), identity.shape[1])
    folder.mkdir(parents=True, exist_ok=True)
    path, note = _files(folder, f"{what}-{_digest(texts)}", identity)
    done = json.loads(note.read_text())["done"] if note.is_file() and path.is_file() else 0
    if done < len(texts):
        mode: Any = "r+" if done else "w+"
        file = np.lib.format.open_memmap(path, mode=mode, dtype=np.float32, shape=shape)
        reserve(path)
        with tqdm(total=len(texts), initial=done, desc=f"Embedding {what}") as bar:
            for start in range(done, len(texts), _BLOCK):
                block = np.asarray(encode(list(texts[start : start + _BLOCK])), dtype=np.float32)
                if not np.isfinite(block).all():
                    row = start + int(np.argmin(np.isfinite(block).all(axis=1)))
                    raise FloatingPointError(f"The encoder's vector of text {row} of the {what} is not finite.")
                file[start : start + len(block)] = block
                file.flush()
                write_json(note, {"done": start + len(block), "identity": identity.tolist()})
                bar.update(len(block))
    return np.load(path, mmap_mode="r") if texts else np.empty(shape, dtype=np.float32)


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", errors="surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def _files(folder: Path, name: str, identity: np.ndarray) -> tuple[Path, Path]:
    """The file of vectors and its note that belong to an encoder, new or there already.

    Encoders are told apart with a tolerance: one machine may choose another kernel in its next process, and vectors
    then differ in their last digits.
    """
    for number in itertools.count(1):
        whole = name if number == 1 else f"{name}-{number}"
        note = folder / f"{whole}.json"
        if note.is_file():
            known = np.asarray(json.loads(note.read_text()).get("identity", ()), dtype=np.float32)
            if known.shape != identity.shape or not np.allclose(known, identity, rtol=0, atol=_SAME):
                continue
        return folder / f"{whole}.npy", note
    raise AssertionError("unreachable: itertools.count never ends")
