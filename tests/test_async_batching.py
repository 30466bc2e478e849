"""The async worker: merges what waits together, cuts what is long, keeps errors apart, and ends when nobody waits."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import pytest

from searchr3_embed.async_batching import Coalescer


class Doubler:
    """Doubles numbers, slowly, and notes what it was given; 7 is too much for it."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches = seconds, list[tuple[Any, list[int]]]()

    def compute(self, key: Any, items: list[int]) -> Sequence[int]:
        self.batches.append((key, items))
        time.sleep(self.seconds)
        if 7 in items:
            raise ValueError("seven")
        return [2 * item for item in items]


def _wait_for_the_worker() -> None:
    for thread in threading.enumerate():
        if thread.name == "searchr3-embed":
            thread.join(5)
            assert not thread.is_alive()


def test_calls_that_wait_together_run_as_one_batch() -> None:
    doubler, coalescer = Doubler(0.05), Coalescer()
    futures = [coalescer.submit(doubler.compute, "ab"[n % 2], [n + 8, n + 100]) for n in range(40)]
    assert [future.result(5) for future in futures] == [[2 * n + 16, 2 * n + 200] for n in range(40)]
    assert len(doubler.batches) <= 6
    assert all(items[0] % 2 == (key == "b") for key, items in doubler.batches)


def test_a_failing_call_fails_alone() -> None:
    doubler, coalescer = Doubler(), Coalescer()
    futures = [coalescer.submit(doubler.compute, "k", [n]) for n in range(10)]
    with pytest.raises(ValueError, match="seven"):
        futures[7].result(5)
    assert [futures[n].result(5) for n in range(10) if n != 7] == [[2 * n] for n in range(10) if n != 7]


def test_a_long_call_is_cut_and_a_question_does_not_wait_for_all_of_it() -> None:
    doubler, coalescer = Doubler(0.02), Coalescer(size=abs)
    numbers = [(n * 37) % 1000 + 10 for n in range(1000)]
    long = coalescer.submit(doubler.compute, "documents", numbers, rows=10)
    time.sleep(0.1)
    before = len(doubler.batches)
    question = coalescer.submit(doubler.compute, "questions", [3], urgent=True)
    assert question.result(5) == [6]
    assert len(doubler.batches) - before <= 3
    assert not long.done()
    assert long.result(20) == [2 * n for n in numbers]  # in the caller's order
    sizes = [items for key, items in doubler.batches if key == "documents"]
    assert all(len(items) <= 10 for items in sizes)
    assert [n for items in sizes for n in items] == sorted(numbers, reverse=True)  # alike items share a batch


def test_nobody_waits_for_ever() -> None:
    """While questions keep coming, every second batch is of the oldest call."""
    doubler, coalescer = Doubler(0.005), Coalescer()
    old = coalescer.submit(doubler.compute, "documents", range(10, 60), rows=5)
    while not old.done():
        coalescer.submit(doubler.compute, "questions", [1], urgent=True)
        time.sleep(0.002)
        assert len(doubler.batches) < 60
    assert old.result() == [2 * n for n in range(10, 60)]


def test_a_cancelled_call_costs_no_further_batch() -> None:
    doubler, coalescer = Doubler(0.05), Coalescer()
    long = coalescer.submit(doubler.compute, "k", range(10, 1010), rows=10)
    waiting = coalescer.submit(doubler.compute, "other", [5])
    time.sleep(0.08)
    assert long.cancel()
    assert waiting.result(5) == [10]
    _wait_for_the_worker()
    assert len(doubler.batches) <= 4


def test_what_computed_is_not_kept() -> None:
    doubler, coalescer = Doubler(), Coalescer()
    future = coalescer.submit(doubler.compute, "k", [1])
    kept = weakref.ref(doubler)
    del doubler
    assert future.result(5) == [2]
    gc.collect()
    assert kept() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("busy", [False, True])
def test_a_forked_child_gets_a_worker_of_its_own(busy: bool) -> None:
    doubler, coalescer = Doubler(0.2 if busy else 0.0), Coalescer()
    first = coalescer.submit(doubler.compute, "k", [1])  # the worker runs now, and only in this process
    if not busy:
        assert first.result(5) == [2]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(10)  # a child that hangs must not hang the tests
            status = int(coalescer.submit(doubler.compute, "k", [2]).result(5) != [4])
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert first.result(5) == [2]
    assert coalescer.submit(doubler.compute, "k", [3]).result(5) == [6]


@pytest.mark.parametrize(
    ("caller", "finishes"),
    [
        ("coalescer.submit(work, 'k', range(1000), rows=1)", False),  # nobody waits any more
        ("threading.Thread(target=wait, daemon=True).start(); time.sleep(0.3)", False),
        ("threading.Thread(target=wait).start(); time.sleep(0.3)", True),  # a thread that Python waits for
    ],
)
def test_an_exit_waits_for_a_batch_and_for_those_who_still_wait(caller: str, finishes: bool) -> None:
    program = f"""
        import atexit, threading, time
        from searchr3_embed.async_batching import Coalescer
        coalescer = Coalescer()
        batches = []
        atexit.register(lambda: print(len(batches), "batches"))
        def work(key, items):
            batches.append(key)
            time.sleep(0.005 if {finishes} else 0.3)
            return items
        def wait():
            if len(coalescer.submit(work, "k", range(100), rows=1).result()) == 100:
                print("all")
        {caller}
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ("all" in ran.stdout) == finishes
    assert finishes or int(ran.stdout.split()[0]) < 50
