"""Turns in chunks, and as tensors."""

from __future__ import annotations

import torch

from searchr3_embed.adapt.padding import chunks_by_length, pad


def test_padding_stands_to_the_right() -> None:
    padded = pad([[5, 6, 7], [8], []])
    assert padded.dtype == torch.long and padded.tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0]]


def test_chunks_hold_all_rows_the_longest_first() -> None:
    turns = [[0] * length for length in (3, 9, 1, 5, 5)]
    assert list(chunks_by_length(turns, 10)) == [[1], [3, 4], [0, 2]]
