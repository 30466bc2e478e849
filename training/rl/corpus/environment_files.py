"""The files of an environment: its vectors, its other arrays, and a small file that says which of them count.

A kill or a full disk while they are written leaves what was saved before.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchr3_embed.files import replacing, shorten, write_json

_FORMAT = 1
_STATE_FILE = "environment.json"


def write(folder: Path, corpus: str, vectors: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the files.

    Args:
        folder: Where to write.
        corpus: Hash of the texts.
        vectors: Their vectors.
        arrays: Everything else.

    Raises:
        OSError: They cannot be written.
    """
    before = _read_state(folder)["generation"] if (folder / _STATE_FILE).exists() else 0
    # New files beside the old ones; the small state file, replaced last, says which of them count.
    generation = before + 1
    vectors_file, arrays_file = _files(folder, generation)
    state = {"format": _FORMAT, "corpus": corpus, "shape": list(vectors.shape), "generation": generation}
    try:
        with replacing(vectors_file) as file:
            np.save(file, vectors)
        with replacing(arrays_file) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # of the names that numpy keeps none is ours
        write_json(folder / _STATE_FILE, state)
    except OSError as error:
        for path in (vectors_file, arrays_file):
            path.unlink(missing_ok=True)
        raise OSError(
            f"the environment cannot be saved in {folder}: {error.strerror or error}; "
            "what was saved there before is kept"
        ) from error
    for path in _files(folder, before):
        path.unlink(missing_ok=True)


def read(folder: Path, corpus: str, count: int, names: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Reads what ``write`` wrote.

    Args:
        folder: Where it was written.
        corpus: Hash of the texts that the vectors should belong to.
        count: How many texts those are.
        names: The other arrays, "stamps" and "graph" among them.

    Returns:
        The vectors, memory-mapped copy-on-write so that the file never changes, and the other arrays.

    Raises:
        ValueError: There is no environment, a broken one, or one of another corpus.
    """
    state = _read_state(folder)
    if state["corpus"] != corpus:
        raise ValueError(
            f"{folder} holds the environment of another corpus: {state['shape'][0]} documents with hash "
            f"{state['corpus'][:12]}, not these {count} with hash {corpus[:12]}. Go on with the corpus that "
            "the run began with, or start anew in another folder."
        )
    vectors_file, arrays_file = _files(folder, state["generation"])
    try:
        vectors = np.load(vectors_file, mmap_mode="c")
        with np.load(arrays_file) as stored:
            arrays = {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"the environment in {folder} is broken: {error}") from error
    lengths = {len(vectors), len(arrays["stamps"]), len(arrays["graph"]), count}
    if [*vectors.shape] != state["shape"] or len(lengths) > 1:
        raise ValueError(f"the environment in {folder} is broken: its files do not fit together")
    return vectors, arrays


def _files(folder: Path, generation: int) -> tuple[Path, Path]:
    return folder / f"vectors-{generation}.npy", folder / f"state-{generation}.npz"


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / _STATE_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no environment ({_STATE_FILE} is missing)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(f"{path} must be an object with format {_FORMAT}, got {shorten(str(state), 80)}")
    return state
