"""The two queues: questions first, documents in slices, nothing lost, and who goes away takes the call along."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3_embed.server import queues as module
from searchr3_embed.server.queues import Call, Embedded, QueueClosedError, QueueFullError, Queues, Wish

QUESTION, DOCUMENT = Wish("query", reason=True), Wish("document")


class Bench:
    """Queues over a computation that waits until it is let go, and remembers what it was given."""

    def __init__(self, question_batch: int = 4, document_batch: int = 3, most: int = 1000) -> None:
        self.batches: list[tuple[Wish, list[str]]] = []
        self.may_go = threading.Event()
        self.busy = threading.Event()
        self.bad: set[str] = set()
        self.queues = Queues(self.compute, question_batch, document_batch, most)

    def compute(self, wish: Wish, texts: list[str], words: Any, on_token: Any) -> Sequence[Embedded]:
        self.busy.set()
        assert self.may_go.wait(30)
        if self.bad & set(texts):
            raise ValueError("a bad text")
        self.batches.append((wish, texts))
        for row, text in enumerate(texts):
            if on_token is not None:
                on_token(row, len(text))
        return [Embedded(np.array([hash(text)], dtype=np.float64)) for text in texts]

    async def occupied(self) -> asyncio.Future[list[Embedded]]:
        """The worker computes a first question and waits; what comes now finds it busy."""
        future = self.queues.submit(Call(QUESTION, ["first"]))
        await asyncio.to_thread(self.busy.wait, 30)
        return future


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.may_go.set()
    bench.queues.close()


async def test_questions_go_first_and_documents_in_slices(bench: Bench) -> None:
    await bench.occupied()
    documents = bench.queues.submit(Call(DOCUMENT, [f"d{number}" for number in range(7)]))
    questions = [bench.queues.submit(Call(QUESTION, [f"q{number}"])) for number in range(6)]
    bench.may_go.set()
    found = await asyncio.gather(documents, *questions)
    assert [len(texts) for _, texts in bench.batches] == [1, 4, 2, 3, 3, 1]
    assert [wish.kind for wish, _ in bench.batches] == ["query"] * 3 + ["document"] * 3
    assert [row.vector[0] for row in found[0]] == [hash(f"d{number}") for number in range(7)]


async def test_many_questions_do_not_starve_documents(bench: Bench) -> None:
    await bench.occupied()
    futures = [bench.queues.submit(Call(DOCUMENT, ["d"]))]
    futures += [bench.queues.submit(Call(QUESTION, ["q"])) for _ in range(4 * 30)]
    bench.may_go.set()
    await asyncio.gather(*futures)
    kinds = [wish.kind for wish, _ in bench.batches]
    assert kinds.index("document") == module._QUESTIONS_IN_A_ROW


async def test_long_calls_do_not_hold_up_short_ones(bench: Bench) -> None:
    await bench.occupied()
    long = bench.queues.submit(Call(DOCUMENT, ["long"] * 9))
    short = bench.queues.submit(Call(DOCUMENT, ["short"]))
    bench.may_go.set()
    assert (len(await short), len(await long)) == (1, 9)
    assert "short" in bench.batches[2][1], "a slice of the long call, and then the short one"


async def test_long_texts_make_a_slice_shorter(bench: Bench) -> None:
    await bench.occupied()
    future = bench.queues.submit(Call(DOCUMENT, ["x" * 10_000, "y" * 9_000, "z"]))
    bench.may_go.set()
    await future
    assert [len(texts) for wish, texts in bench.batches if wish.kind == "document"] == [1, 1, 1]


async def test_a_call_that_is_taken_back_is_not_computed(bench: Bench) -> None:
    await bench.occupied()
    gone, stays = (bench.queues.submit(Call(QUESTION, [name])) for name in ("gone", "stays"))
    assert bench.queues.waiting("query") == 3
    gone.cancel()
    await asyncio.sleep(0)
    assert bench.queues.waiting("query") == 2
    bench.may_go.set()
    await stays
    assert [texts for _, texts in bench.batches] == [["first"], ["stays"]]


async def test_a_bad_call_does_not_fail_its_neighbours(bench: Bench) -> None:
    bench.bad = {"bad"}
    await bench.occupied()
    good, bad, other = (bench.queues.submit(Call(QUESTION, [name])) for name in ("good", "bad", "other"))
    bench.may_go.set()
    assert [row.vector[0] for row in [*await good, *await other]] == [hash("good"), hash("other")]
    with pytest.raises(ValueError, match="a bad text"):
        await bad
    assert bench.queues.waiting("query") == 0


async def test_full_and_closed() -> None:
    bench = Bench(most=2)
    first = await bench.occupied()
    bench.queues.submit(Call(QUESTION, ["second"]))
    with pytest.raises(QueueFullError) as full:
        bench.queues.submit(Call(QUESTION, ["third"]))
    assert full.value.seconds > 0
    document = bench.queues.submit(Call(DOCUMENT, ["another queue"]))
    bench.may_go.set()
    await first
    await asyncio.to_thread(bench.queues.close)
    assert len(await document) == 1, "what was taken is computed"
    with pytest.raises(QueueClosedError):
        bench.queues.submit(Call(QUESTION, ["late"]))


async def test_tokens_reach_the_call_that_they_are_of(bench: Bench) -> None:
    await bench.occupied()
    heard: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}
    calls = [
        Call(QUESTION, texts, on_token=lambda place, token, name=name: heard[name].append((place, token)))
        for name, texts in (("a", ["x", "xxx"]), ("b", ["xx"]))
    ]
    futures = [bench.queues.submit(call) for call in [*calls, Call(QUESTION, ["nobody listens"])]]
    bench.may_go.set()
    await asyncio.gather(*futures)
    assert {name: sorted(told) for name, told in heard.items()} == {"a": [(0, 1), (1, 3)], "b": [(0, 2)]}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([QUESTION, DOCUMENT, Wish("query"), Wish("query", True, 3)]),
            st.lists(st.text(max_size=4), min_size=1, max_size=9),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_every_call_gets_its_own_results_in_order(calls: list[tuple[Wish, list[str], bool]]) -> None:
    bench = Bench()

    async def run() -> None:
        first = await bench.occupied()
        futures = [bench.queues.submit(Call(wish, texts)) for wish, texts, _ in calls]
        for future, (_, _, cancelled) in zip(futures, calls, strict=True):
            if cancelled:
                future.cancel()
        bench.may_go.set()
        await first
        for future, (_, texts, cancelled) in zip(futures, calls, strict=True):
            if not cancelled:
                assert [row.vector[0] for row in await future] == [hash(text) for text in texts]

    asyncio.run(run())
    bench.queues.close()
    assert all(len({wish}) == 1 and len(texts) <= 4 for wish, texts in bench.batches)
