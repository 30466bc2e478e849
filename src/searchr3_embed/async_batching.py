"""Async calls to a blocking batch function: one worker thread, calls that wait together run as one batch."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from searchr3_embed.engine.cpu.threads import release_helpers

# How long the worker waits for more calls after the first one: far below the time of one forward pass.
_GATHER_SECONDS = 0.002
# The worker ends after so long without a call, so that it does not keep an unused model in memory.
_IDLE_SECONDS = 10.0


@dataclasses.dataclass
class _Call:
    key: Hashable
    items: list[Any]
    future: concurrent.futures.Future[Sequence[Any]]


class Coalescer:
    """Runs ``function(key, items)`` on one worker thread; waiting calls with equal keys become one.

    Args:
        function: Takes a key and a list of items, returns one result per item, in order. It is never called from two
            threads at once.
    """

    def __init__(self, function: Callable[[Any, list[Any]], Sequence[Any]]) -> None:
        self._function = function
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None

    def submit(self, key: Hashable, items: Sequence[Any]) -> concurrent.futures.Future[Sequence[Any]]:
        """Queues a call; the future holds one result per item."""
        future: concurrent.futures.Future[Sequence[Any]] = concurrent.futures.Future()
        release_helpers()  # the caller only waits from here on: its OpenMP threads would slow the worker's down
        with self._lock:
            if self._worker is not None and not self._worker.is_alive():
                # A worker sets this to None when it ends. This one was lost in a fork: threads are not copied.
                self._calls, self._worker = queue.SimpleQueue(), None
            self._calls.put(_Call(key, list(items), future))
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="searchr3-embed", daemon=True)
                self._worker.start()
        return future

    def _work(self) -> None:
        while True:
            try:
                calls = [self._calls.get(timeout=_IDLE_SECONDS)]
            except queue.Empty:
                with self._lock:
                    # A call may have come in between the timeout and the lock.
                    if self._calls.empty():
                        self._worker = None
                        return
                continue
            time.sleep(_GATHER_SECONDS)
            while not self._calls.empty():
                calls.append(self._calls.get())
            groups: dict[Hashable, list[_Call]] = {}
            for call in calls:
                if call.future.set_running_or_notify_cancel():
                    groups.setdefault(call.key, []).append(call)
            for key, group in groups.items():
                self._run(key, group)
            if self._calls.empty():
                release_helpers()

    def _run(self, key: Hashable, group: list[_Call]) -> None:
        try:
            results = self._function(key, [item for call in group for item in call.items])
        except BaseException as error:  # the callers get it, and the worker goes on
            if len(group) == 1:
                group[0].future.set_exception(error)
            else:
                # One bad call must not fail its neighbours.
                for call in group:
                    self._run(key, [call])
            return
        start = 0
        for call in group:
            call.future.set_result(results[start : start + len(call.items)])
            start += len(call.items)
