"""Token ids into padded tensors: which turns share a forward pass, and how they are padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def chunks_by_length(turns: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Row numbers in chunks of about ``tokens`` padded tokens, longest first, so that little padding is computed."""
    order = sorted(range(len(turns)), key=lambda row: -len(turns[row]))
    start = 0
    while start < len(order):
        rows = max(1, tokens // len(turns[order[start]]))
        yield order[start : start + rows]
        start += rows


def pad(turns: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and attention mask, both int64 of shape (rows, longest).

    A causal model never looks at what stands to the right, so it needs no mask.
    """
    longest = max(map(len, turns))
    ids = torch.zeros(len(turns), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, turn in enumerate(turns):
        ids[row, : len(turn)] = torch.tensor(turn)
        mask[row, : len(turn)] = 1
    return ids, mask
