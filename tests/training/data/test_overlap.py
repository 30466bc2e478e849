"""When two queries count as the same, and the guard against evaluation queries."""

from __future__ import annotations

import random
import time

from hypothesis import given
from hypothesis import strategies as st

from searchr3_embed.adapt.same_text import close, first_of_kind, query_key, words
from tests.training.data.rows import phrases
from training.data.overlap import Guard


@given(st.lists(phrases, max_size=6), phrases)
def test_guard_equals_brute_force(evaluation: list[str], query: str) -> None:
    match = Guard(dict.fromkeys(evaluation, "set")).match(query)
    equal = [text for text in evaluation if query_key(text) == query_key(query)]
    near = [text for text in evaluation if close(set(words(text)), set(words(query)))]
    if equal:
        assert match is not None and match[2] and query_key(match[0]) == query_key(query)
    elif near:
        assert match is not None and not match[2] and match[0] in near
    else:
        assert match is None


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_close_is_a_jaccard_of_at_least_85_percent(one: set[int], other: set[int]) -> None:
    expected = bool(one | other) and 20 * len(one & other) >= 17 * len(one | other)
    assert close({str(i) for i in one}, {str(i) for i in other}) == expected


def test_the_limit_of_closeness() -> None:
    # 17 words shared of 20 is 0.85, the limit; 16 of 19 is 0.842.
    evaluation = " ".join(f"w{i}" for i in range(20))
    guard = Guard({evaluation: "set"})
    assert guard.match(" ".join(f"w{i}" for i in range(17))) == (evaluation, "set", False)
    assert guard.match(" ".join(f"w{i}" for i in range(3, 20))) == (evaluation, "set", False)
    assert guard.match(" ".join(f"w{i}" for i in range(16))) is None
    assert not close({str(i) for i in range(19)}, {str(i) for i in range(16)})


def test_guard_takes_texts_without_letters_as_they_are() -> None:
    guard = Guard({"?!": "set", "…": "set", "Ａcme é": "set"})
    assert guard.match("?!") and not guard.match("!?") and not guard.match("...")
    assert guard.match("acme e\u0301") and not guard.match("acme e")  # other code points, the same letters


def test_guard_is_fast() -> None:
    # The size of real runs. Comparing all pairs would be 250 million comparisons: minutes.
    evaluation = {f"the meaning of word{i} for word{i % 97}": "set" for i in range(3000)}
    guard = Guard(evaluation)
    queries = [f"the meaning of term{i} for word{i % 97}" for i in range(86_000)]
    started = time.process_time()
    assert not any(guard.match(query) for query in queries)
    assert time.process_time() - started < 30


def test_nearly_equal_queries_are_dropped_after_the_first() -> None:
    long = "which of the large rivers of the old world carries the most water into the sea today"
    queries = [
        "What is a glacier?",
        "what is a GLACIER",
        long,
        f"{long} then",
        "then " + " ".join(reversed(long.split())),
        "which of the small lakes of the new world carries the least water out of the sea today",
        "what is a violin?",
        "?!",
        "?!",
    ]
    assert first_of_kind(queries) == [True, False, True, False, False, True, True, True, False]
    assert first_of_kind([]) == []


def test_near_equality_agrees_with_comparing_every_pair() -> None:
    rng = random.Random(0)
    queries = [" ".join(rng.sample("abcdefghij", rng.randint(5, 9))) for _ in range(400)]
    kept: list[str] = []
    expected = []
    for query in queries:
        new = all(query_key(query) != query_key(k) and not close(set(words(query)), set(words(k))) for k in kept)
        kept += [query] * new
        expected.append(new)
    assert first_of_kind(queries) == expected
    assert 50 < sum(expected) < 350
