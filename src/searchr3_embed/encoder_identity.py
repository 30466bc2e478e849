"""Which encoder made these vectors? A name does not tell: weights change under a name, and copies have other names.

So everything that is written with vectors carries the encoder's name and its vectors of a few fixed texts, the
*probes*. Two encoders are the same where their probes agree, up to what half precision changes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchr3_embed.files import write_json

# Fixed for ever: files that were written with them are compared with them.
PROBES = (
    "What is the capital of France?",
    "def add(a, b):\n    return a + b",
    "Photosynthesis turns light into chemical energy.",
    "12 June 1905",
)
# Half precision and other kernels keep a cosine of .9998 and more; another encoder is nowhere near.
LEAST_COSINE = 0.999
# Lengths matter only where an encoder does not normalise; half precision keeps three digits.
_LARGEST_LENGTH_ERROR = 0.01
_NOTE_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class IndexCheck:
    """Whether an index was made by this encoder, see ``ReasoningEmbedder.check_index``.

    Attributes:
        valid: Whether every row that was embedded again agrees with what the index holds.
        rows: Number of rows that were embedded again.
        lowest_cosine: Between a row of the index and the encoder's vector of its text.
        worst: Number of that row.
        message: One sentence for people.
    """

    valid: bool
    rows: int
    lowest_cosine: float
    worst: int
    message: str

    def __bool__(self) -> bool:
        return self.valid


def probe_vectors(encode: Callable[[list[str]], Any]) -> np.ndarray:
    """The vectors of the probes, float32 of shape (probes, dimension); ``encode`` embeds texts without a prompt."""
    return np.asarray(encode(list(PROBES)), dtype=np.float32)


def same_space(ours: np.ndarray, theirs: Sequence[Sequence[float]] | np.ndarray) -> bool:
    """Whether two encoders give the same vectors of the probes, of shape (probes, dimension) each."""
    other = np.asarray(theirs, dtype=np.float32)
    return (
        other.shape == ours.shape and bool(np.all(agreement(ours, other)[0])) and float(cosines(ours, other).min()) > 0
    )


def note_path(vectors: str | os.PathLike[str]) -> Path:
    """Where the encoder of a file of vectors is noted: ``x.npy`` has ``x.npy.encoder.json`` beside it."""
    return Path(f"{os.fspath(vectors)}.encoder.json")


def write_note(vectors: str | os.PathLike[str], name: str, probes: np.ndarray) -> None:
    """Notes beside a file of vectors which encoder made them.

    Args:
        vectors: The file.
        name: Of the encoder.
        probes: Its vectors of the probe texts.

    Raises:
        OSError: The note can't be written.
    """
    rounded = [[round(float(value), 6) for value in row] for row in probes]
    write_json(note_path(vectors), {"format": _NOTE_FORMAT, "encoder": name, "probes": rounded}, indent=None)


def read_note(vectors: str | os.PathLike[str]) -> tuple[str, np.ndarray] | None:
    """Name and probe vectors of the encoder that made a file of vectors; None where nothing is noted.

    Raises:
        ValueError: The note is damaged.
    """
    path = note_path(vectors)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return str(fields["encoder"]), np.asarray(fields["probes"], dtype=np.float32)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no note of an encoder: remove it, or make the vectors again.") from error


def agreement(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row by row: whether two matrices of vectors agree, and their cosines.

    Args:
        ours: Shape (rows, dimension).
        theirs: The same shape.
    """
    lengths = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    found = cosines(ours, theirs)
    near = np.abs(lengths[0] - lengths[1]) <= _LARGEST_LENGTH_ERROR * np.maximum(lengths[0], 1e-12)
    return (found >= LEAST_COSINE) & near, found


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows; 0 where one of them is zero or not finite."""
    product = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (ours * theirs).sum(axis=1) / product
    return np.where(np.isfinite(found), found, 0.0)


def check_index(
    encode: Callable[[list[str]], Any], name: str, texts: Sequence[str], vectors: Any, rows: int = 16
) -> IndexCheck:
    """Embeds a few rows of someone's index again and compares.

    Args:
        encode: Embeds documents.
        name: Of the encoder, for the message.
        texts: The texts of the index.
        vectors: Its vectors in the same order, shape (texts, dimension), of any floating-point type.
        rows: How many rows to embed again, evenly spread.

    Raises:
        ValueError: There is nothing to compare, or the numbers of texts and vectors differ.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ValueError(f"rows must be a positive integer, got {rows!r}.")
    stored = np.asarray(vectors, dtype=np.float32)
    if stored.ndim != 2 or len(stored) != len(texts) or not len(texts):
        raise ValueError(
            f"check_index needs as many vectors as texts, at least one: got {len(texts)} texts and vectors of shape "
            f"{stored.shape}."
        )
    chosen = np.unique(np.linspace(0, len(texts) - 1, min(rows, len(texts))).round().astype(int)).tolist()
    ours = np.asarray(encode([texts[i] for i in chosen]), dtype=np.float32)
    if ours.shape[1] != stored.shape[1]:
        return IndexCheck(
            False,
            len(chosen),
            0.0,
            chosen[0],
            f"The index has {stored.shape[1]} dimensions, {name} has {ours.shape[1]}.",
        )
    agree, found = agreement(ours, stored[chosen])
    place = int(np.argmin(np.where(agree, found + 1, found)))
    lowest, worst = float(found[place]), chosen[place]
    if agree.all():
        message = f"The index is valid for {name}: {len(chosen)} rows agree, lowest cosine {lowest:.5f}."
    else:
        message = (
            f"The index was not made by {name} from these texts: {int((~agree).sum())} of {len(chosen)} rows "
            f"differ, row {worst} most (cosine {lowest:.3f}, lengths {np.linalg.norm(ours[place]):.3f} and "
            f"{np.linalg.norm(stored[worst]):.3f})."
        )
    return IndexCheck(bool(agree.all()), len(chosen), lowest, worst, message)
