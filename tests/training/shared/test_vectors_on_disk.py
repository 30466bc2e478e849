"""Vectors of an encoder on disk: whole after a kill, and never those of another encoder or of other texts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from searchr3_embed.encoder_identity import PROBES
from training.shared import vectors_on_disk as module
from training.shared.vectors_on_disk import vectors_on_disk

TEXTS = [f"text {'x' * (i % 7)} {i}" for i in range(11)]


def encoder(seen: list[str], scale: float = 1.0, limit: int | None = None) -> Callable[[list[str]], np.ndarray]:
    """Vectors that tell texts apart; reads ``limit`` characters, and notes what it read."""

    def encode(texts: list[str]) -> np.ndarray:
        seen.extend(texts)
        return np.array([[scale * len(text[:limit]), sum(map(ord, text[:limit]))] for text in texts])

    return encode


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 3)


def test_killed_in_the_middle_it_goes_on_behind_the_last_whole_block(tmp_path: Path) -> None:
    seen: list[str] = []
    whole = np.array(vectors_on_disk(encoder(seen), TEXTS, tmp_path / "whole", "documents"))
    assert whole.dtype == np.float32 and seen[len(PROBES) + 1 :] == TEXTS
    plain = encoder([])

    def dies(texts: list[str]) -> np.ndarray:
        if TEXTS[7] in texts:
            raise KeyboardInterrupt
        return plain(texts)

    with pytest.raises(KeyboardInterrupt):
        vectors_on_disk(dies, TEXTS, tmp_path / "killed", "documents")
    again: list[str] = []
    found = vectors_on_disk(encoder(again), TEXTS, tmp_path / "killed", "documents")
    assert np.array_equal(found, whole) and again[len(PROBES) + 1 :] == TEXTS[6:]
    # Whole, it is read and nothing is embedded but what tells the encoder.
    third: list[str] = []
    assert np.array_equal(vectors_on_disk(encoder(third), TEXTS, tmp_path / "killed", "documents"), whole)
    assert len(third) == len(PROBES) + 1
    assert not found.flags.writeable


def test_another_encoder_or_text_has_another_file(tmp_path: Path) -> None:
    first = np.array(vectors_on_disk(encoder([]), TEXTS, tmp_path, "documents"))
    others = [
        (encoder([], scale=2.0), TEXTS),
        (encoder([], limit=10), [*TEXTS[:-1], "x" * 60]),
        (encoder([]), [*TEXTS[:-1], "x" * 60]),
        (encoder([]), TEXTS[::-1]),
    ]
    for number, (encode, texts) in enumerate(others, start=2):
        assert np.array_equal(vectors_on_disk(encode, texts, tmp_path, "documents"), encode(list(texts)))
        assert len(list(tmp_path.glob("*.npy"))) == number
    assert np.array_equal(vectors_on_disk(encoder([]), TEXTS, tmp_path, "documents"), first)
    assert vectors_on_disk(encoder([]), [], tmp_path, "documents").shape == (0, 2)


def test_the_last_digits_of_another_process_do_not_matter(tmp_path: Path) -> None:
    plain = encoder([])
    first = np.array(vectors_on_disk(plain, TEXTS, tmp_path, "documents"))
    generator = np.random.default_rng(0)
    for _ in range(20):
        seen: list[str] = []
        other = encoder(seen)
        noise = generator.uniform(-2e-5, 2e-5)
        again = vectors_on_disk(lambda texts, f=other, e=noise: f(texts) + e, TEXTS, tmp_path, "documents")
        assert np.array_equal(again, first) and len(seen) == len(PROBES) + 1
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_a_vector_that_is_not_finite_is_named(tmp_path: Path) -> None:
    plain = encoder([])

    def broken(texts: list[str]) -> np.ndarray:
        return np.where([[text == TEXTS[8]] for text in texts], np.nan, plain(texts))

    with pytest.raises(FloatingPointError, match="vector of text 8 of the documents is not finite"):
        vectors_on_disk(broken, TEXTS, tmp_path, "documents")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs a reservation")
def test_a_full_disk_is_an_error_before_anything_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    seen: list[str] = []
    with pytest.raises(OSError, match="No space left") as found:
        vectors_on_disk(encoder(seen), TEXTS, tmp_path, "documents")
    assert str(found.value.filename).startswith(str(tmp_path / "documents-"))
    assert len(seen) == len(PROBES) + 1 and not list(tmp_path.iterdir())
