"""Helpers of threads that wait are let go, and come back when they are needed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.engine.cpu import threads

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir() or threads._pause() is None, reason="torch does not run on GNU's OpenMP here"
)


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    threads.release_helpers()
    torch.set_num_threads(before)


def running() -> int:
    return len(os.listdir("/proc/self/task"))


def compute() -> torch.Tensor:
    return torch.arange(300_000, dtype=torch.float64).sin().sum()


def test_helpers_end_and_come_back() -> None:
    threads.release_helpers()
    threads.release_helpers()  # nothing to release, nothing lost
    without = running()
    first = compute()
    assert running() == without + 2
    threads.release_helpers()
    assert running() == without
    assert torch.equal(compute(), first)


def test_async_calls_leave_no_helpers_behind(mini_checkpoint: Path) -> None:
    mini = ReasoningEmbedder(mini_checkpoint, device="cpu", on_truncate="ignore")
    texts = ["how is mold removed from walls", "parse a date in python", "is gold a good investment"]
    alone = mini.encode_query(texts)
    threads.release_helpers()
    before = running()

    async def together() -> list[torch.Tensor]:
        return await asyncio.gather(*(mini.aencode_query(text, convert_to_tensor=True) for text in texts))

    compute()
    assert running() == before + 2  # of this thread, which is about to wait
    found = torch.stack(asyncio.run(together()))
    deadline = 200
    while running() > before and deadline:  # the worker itself ends when no call waits
        asyncio.run(asyncio.sleep(0.01))
        deadline -= 1
    assert running() == before
    torch.testing.assert_close(found, torch.from_numpy(alone), atol=1e-5, rtol=0)


def test_a_forked_process_does_not_wait_for_helpers_that_it_does_not_have() -> None:
    compute()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        threads.release_helpers()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_another_openmp_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_pause", lambda: None)
    compute()
    before = running()
    threads.release_helpers()
    assert running() == before
