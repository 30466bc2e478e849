"""Passes over many rows: every row once, within the limits, with little padding; and what prompts share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from searchr3_embed.engine import batching


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 12), st.integers(1, 200))
def test_passes_hold_every_row_once_within_their_limits(lengths: list[int], rows: int, tokens: int) -> None:
    chunks = batching.chunks([[0] * length for length in lengths], rows, tokens)
    assert sorted(row for chunk in chunks for row in chunk) == list(range(len(lengths)))
    for chunk in chunks:
        longest = max(lengths[row] for row in chunk)
        assert lengths[chunk[0]] == longest and len(chunk) <= rows
        assert len(chunk) == 1 or len(chunk) * longest <= tokens


def test_a_large_pass_ends_where_rows_become_much_shorter() -> None:
    turns = [[0] * length for length in [100, 100, 90, 70, 70, 10]]
    assert batching.chunks(turns, 64, 1000) == [[0, 1, 2], [3, 4, 5]]
    # Too small a pass takes them along: another one would cost more than the padding.
    assert batching.chunks(turns, 64, 4000) == [[0, 1, 2, 3, 4, 5]]


@given(
    st.lists(st.integers(0, 3), min_size=20, max_size=40),
    st.lists(st.lists(st.integers(0, 3), min_size=1), min_size=1),
)
def test_the_shared_beginning_leaves_each_row_a_token(beginning: list[int], ends: list[list[int]]) -> None:
    turns = [[*beginning, *end] for end in ends]
    prefix = batching.shared_prefix(turns)
    if len(turns) == 1:
        assert prefix == []
        return
    assert all(turn[: len(prefix)] == prefix and len(turn) > len(prefix) for turn in turns)
    assert len(prefix) >= len(beginning)
    heads = {tuple(turn[: len(prefix) + 1]) for turn in turns}
    assert len(heads) > 1 or min(map(len, turns)) == len(prefix) + 1


def test_a_short_shared_beginning_is_not_kept() -> None:
    assert batching.shared_prefix([[1] * 15 + [2], [1] * 15 + [3]]) == []
    assert batching.shared_prefix([[1] * 16 + [2], [1] * 16 + [3]]) == [1] * 16
