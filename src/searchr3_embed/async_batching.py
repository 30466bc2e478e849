"""Async calls to a blocking batch function: one worker thread, calls that wait together run as one batch.

A call is cut into batches, and between two batches the worker looks again who waits: so a call with many items never
makes a question wait for all of it, and a call that is cancelled costs no further batch. Questions go first; no call
is passed over twice in a row while it is the oldest, so none waits for ever.

The worker lives only while calls wait. It is no daemon: Python ends a daemon's thread wherever it is, and inside of
torch that kills the process. So an exit waits for the batch that is being computed, and for calls whose callers still
run; other calls are dropped.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from searchr3_embed.engine.cpu.threads import release_helpers

# How long the worker waits for more calls before each batch: far below the time of one forward pass.
_GATHER_SECONDS = 0.002
# Texts are cut behind thousands of letters at the latest by most models: a batch of so many letters is a long one.
_LARGEST_BATCH = 1 << 17

Function = Callable[[Any, list[Any]], Sequence[Any]]


@dataclasses.dataclass(eq=False)
class _Call:
    """A call that waits.

    Attributes:
        function: What computes it, with ``key`` and items.
        key: Calls with equal functions and keys may share a batch.
        items: What is to be computed.
        rows: Most items of a batch.
        urgent: Whether it goes before others.
        future: Its results.
        caller: The thread that waits for it.
        left: Places of the items that are still to be computed, the next one last.
        results: By place.
    """

    function: Function
    key: Hashable
    items: list[Any]
    rows: int
    urgent: bool
    future: concurrent.futures.Future[list[Any]]
    caller: threading.Thread
    left: list[int]
    results: dict[int, Any] = dataclasses.field(default_factory=dict)
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether there is nothing more to compute."""
        return not self.left or self.error is not None

    def abandoned(self, leaving: bool) -> bool:
        """Whether nobody waits for it; ``leaving`` says that the main thread has ended."""
        unheard = leaving and (self.caller.daemon or not self.caller.is_alive())
        return self.future.cancelled() or unheard

    def take(self, rows: int, size: int, size_of: Callable[[Any], int]) -> list[int]:
        """Takes the places of its next items: at most so many, and of at most this size together."""
        taken: list[int] = []
        while self.left and len(taken) < rows:
            size -= size_of(self.items[self.left[-1]])
            if size < 0:
                break
            taken.append(self.left.pop())
        return taken


class Coalescer:
    """Runs functions on one worker thread, never two at once; waiting calls with equal keys share batches.

    Args:
        size: Of an item. Large items come first, so that those of a batch are alike; and a batch of large ones has
            few.
    """

    def __init__(self, size: Callable[[Any], int] = lambda item: 0) -> None:
        self._size = size
        self.forget()
        _coalescers.add(self)

    def forget(self) -> None:
        """Begins anew without calls and without a worker, as a forked child must: threads are not copied."""
        self._lock = threading.Lock()
        self._calls: list[_Call] = []
        self._worker: threading.Thread | None = None
        self._passed_over = False

    def submit(
        self, function: Function, key: Hashable, items: Sequence[Any], *, rows: int = 64, urgent: bool = False
    ) -> concurrent.futures.Future[list[Any]]:
        """Queues a call.

        Args:
            function: Takes a key and a list of items, returns one result per item, in order.
            key: Calls with equal functions and keys may share a batch.
            items: At least one.
            rows: Most items of a batch.
            urgent: Whether this call goes before others, as far as it fits into one batch.

        Returns:
            The future of one result per item. Cancelling it takes out what is not computed yet.

        Raises:
            RuntimeError: The interpreter is ending.
        """
        order = sorted(range(len(items)), key=lambda place: self._size(items[place]))
        call = _Call(
            function,
            key,
            list(items),
            rows,
            urgent and len(items) <= rows,
            concurrent.futures.Future(),
            threading.current_thread(),
            order,
        )
        release_helpers()  # the caller only waits from here on: its OpenMP threads would slow the worker's down
        with self._lock:
            self._calls.append(call)
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="searchr3-embed", daemon=False)
                try:
                    worker.start()
                except RuntimeError:  # "can't start new thread": the interpreter is ending, or there are too many
                    self._calls.remove(call)
                    raise
                self._worker = worker
        return call.future

    def _work(self) -> None:
        while True:
            time.sleep(_GATHER_SECONDS)
            settled = self._run_batch()
            if settled is None:
                return
            _settle(settled)
            del settled

    def _run_batch(self) -> list[_Outcome] | None:
        """Computes one batch; returns the outcomes of calls that it ends, or None where no calls wait.

        When it returns, the worker holds nothing of the calls any more: a model that only they kept is freed before
        their callers go on.
        """
        leaving = not threading.main_thread().is_alive()
        with self._lock:
            # Nobody is told: who would hear it is gone, has cancelled the call, or is a daemon that ends with Python.
            self._calls = [call for call in self._calls if not call.abandoned(leaving)]
            if not self._calls:
                self._worker = None
                return None
            parts = self._choose()
        _run(parts)
        with self._lock:
            ended = [call for call, _ in parts if call.done]
            self._calls = [call for call in self._calls if call not in ended]
            idle = not self._calls
        if idle:
            release_helpers()
        return [(call.future, list(map(call.results.get, range(len(call.items)))), call.error) for call in ended]

    def _choose(self) -> list[tuple[_Call, list[int]]]:
        """Who is in the next batch, and with which items."""
        oldest = self._calls[0]
        # Who was computed least goes first; sorting keeps the order of arrival.
        waiting = sorted(self._calls, key=lambda call: (not call.urgent, len(call.results)))
        first = oldest if self._passed_over else waiting[0]
        self._passed_over = first is not oldest
        rows, size = first.rows, max(_LARGEST_BATCH, self._size(first.items[first.left[-1]]))
        parts: list[tuple[_Call, list[int]]] = []
        for call in (first, *(call for call in waiting if call is not first)):
            if call.key != first.key or call.function != first.function:
                continue
            taken = call.take(rows, size, self._size)
            if taken:
                parts.append((call, taken))
                rows -= len(taken)
                size -= sum(self._size(call.items[place]) for place in taken)
        return parts


_Outcome = tuple[concurrent.futures.Future[list[Any]], list[Any], BaseException | None]


def _run(parts: Sequence[tuple[_Call, list[int]]]) -> None:
    """Computes one batch and notes the results of each call, or its error."""
    first = parts[0][0]
    try:
        results = first.function(first.key, [call.items[place] for call, places in parts for place in places])
    except BaseException as error:  # the callers get it, and the worker goes on
        if len(parts) == 1:
            first.error = error
            return
        # One bad call must not fail its neighbours.
        for part in parts:
            if not part[0].future.cancelled():
                _run([part])
        return
    noted = iter(results)
    for call, places in parts:
        for place in places:
            call.results[place] = next(noted)


def _settle(outcomes: Sequence[_Outcome]) -> None:
    for future, results, error in outcomes:
        # Until here it could be cancelled.
        if not future.set_running_or_notify_cancel():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(results)


_coalescers: weakref.WeakSet[Coalescer] = weakref.WeakSet()


def _begin_anew() -> None:
    for coalescer in list(_coalescers):
        coalescer.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
