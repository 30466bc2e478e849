"""Turns of token ids as padded tensors, in chunks that waste little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def chunks_by_length(turns: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Row numbers in chunks of about ``tokens`` padded tokens, longest first, so that little padding is computed."""
    order = sorted(range(len(turns)), key=lambda row: -len(turns[row]))
    start = 0
    while start < len(order):
        rows = max(1, tokens // len(turns[order[start]]))
        yield order[start : start + rows]
        start += rows


def pad(turns: Sequence[Sequence[int]]) -> Tensor:
    """Right-padded ids, int64 of shape (rows, longest).

    There is no attention mask: a causal model never looks at what stands to the right.
    """
    return pad_sequence([torch.tensor(turn, dtype=torch.long) for turn in turns], batch_first=True)
