"""Which rows share a forward pass, and what of them needs to be computed only once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# A shared beginning shorter than this is cheaper to compute again than to keep apart.
_LEAST_SHARED_PREFIX = 16
# Tokens of one forward pass. On a CPU what a thread computes should stay in its cache; a GPU must be filled.
_TOKENS_PER_THREAD, _TOKENS_ELSEWHERE = 1024, 65536
# A pass that holds this share of them is large enough to end before rows that are much shorter.
_LEAST_SHARE, _MUCH_SHORTER = 0.25, 0.8


def tokens_per_forward(device: torch.device) -> int:
    """Most padded tokens of one forward pass, for speed on this device."""
    return _TOKENS_PER_THREAD * torch.get_num_threads() if device.type == "cpu" else _TOKENS_ELSEWHERE


def chunks(turns: Sequence[Sequence[int]], most_rows: int, most_tokens: int) -> list[list[int]]:
    """Row numbers, longest first, cut into passes of at most ``most_rows`` rows and ``most_tokens`` padded tokens.

    A pass that is large enough ends where the rows become much shorter, so that little padding is computed.
    """
    order = sorted(range(len(turns)), key=lambda row: -len(turns[row]))
    passes: list[list[int]] = []
    for row in order:
        if passes:
            rows = len(passes[-1])
            longest = len(turns[passes[-1][0]])
            enough = rows * longest >= _LEAST_SHARE * most_tokens and len(turns[row]) < _MUCH_SHORTER * longest
            if rows < most_rows and (rows + 1) * longest <= most_tokens and not enough:
                passes[-1].append(row)
                continue
        passes.append([row])
    return passes


def shared_prefix(turns: Sequence[Sequence[int]]) -> list[int]:
    """What all turns begin with, at least one token short of the shortest; empty if not worth keeping."""
    if len(turns) < 2:
        return []
    # All turns share what the first and the last in lexicographic order share.
    low, high = min(map(list, turns)), max(map(list, turns))
    length = 0
    most = min(map(len, turns)) - 1
    while length < most and low[length] == high[length]:
        length += 1
    return list(low[:length]) if length >= _LEAST_SHARED_PREFIX else []
