"""The async worker: merges what waits together, keeps errors apart, and survives a fork."""

from __future__ import annotations

import os
import signal
import time

import pytest

from searchr3_embed.async_batching import Coalescer


def test_calls_that_wait_together_run_as_one_batch() -> None:
    batches: list[tuple[str, list[int]]] = []

    def slow_double(key: str, items: list[int]) -> list[int]:
        batches.append((key, items))
        time.sleep(0.05)
        return [2 * item for item in items]

    coalescer = Coalescer(slow_double)
    futures = [coalescer.submit("ab"[n % 2], [n, n + 100]) for n in range(40)]
    assert [future.result(5) for future in futures] == [[2 * n, 2 * n + 200] for n in range(40)]
    assert len(batches) <= 6
    assert all(items[0] % 2 == (key == "b") for key, items in batches)


def test_a_failing_call_fails_alone() -> None:
    def halves(key: str, items: list[int]) -> list[int]:
        if 7 in items:
            raise ValueError("seven")
        return [item // 2 for item in items]

    coalescer = Coalescer(halves)
    futures = [coalescer.submit("k", [n]) for n in range(10)]
    with pytest.raises(ValueError, match="seven"):
        futures[7].result(5)
    assert [futures[n].result(5) for n in range(10) if n != 7] == [[n // 2] for n in range(10) if n != 7]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_gets_a_worker_of_its_own() -> None:
    coalescer = Coalescer(lambda key, items: items)
    assert coalescer.submit("k", [1]).result(5) == [1]  # the worker runs now, and only in this process
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(10)  # a child that hangs must not hang the tests
            status = int(coalescer.submit("k", [2]).result(5) != [2])
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert coalescer.submit("k", [3]).result(5) == [3]
