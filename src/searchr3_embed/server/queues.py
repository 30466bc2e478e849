"""Two queues and the thread that computes: questions first, documents in slices between them.

A call waits as a whole and is computed in parts. Calls that wait together and want the same are computed together. A
call whose future is cancelled leaves its queue.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from searchr3_embed.reasoning_trace import Reasoning

Kind = Literal["query", "document"]
OnToken = Callable[[int, int], object]

# How long the first question waits for company: far below the time of one forward pass.
_GATHER_SECONDS = 0.002
# Documents get a slice after so many batches of questions, however many more questions wait.
_QUESTIONS_IN_A_ROW = 8
# Characters in a slice of documents, for each text that it may have: long texts make it shorter.
_CHARACTERS = 256


class Wish(NamedTuple):
    """What a call wants of its texts; calls with equal wishes are computed together.

    Attributes:
        kind: Question or document.
        reason: Whether to think.
        budget: ``max_reasoning_tokens``.
        given: Whether the words come with the texts.
    """

    kind: Kind
    reason: bool = False
    budget: int | None = None
    given: bool = False


class Embedded(NamedTuple):
    """What became of one text: its vector, float32 of shape (dimension,), and the trace if there is one."""

    vector: np.ndarray
    trace: Reasoning | None = None


class QueueFullError(Exception):
    """As many calls wait as may. ``seconds`` is about how long they will take."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The queue is full for about {seconds:.0f} s.")
        self.seconds = seconds


class QueueClosedError(Exception):
    """The server is shutting down."""


Compute = Callable[[Wish, list[str], list[str] | None, OnToken | None], Sequence[Embedded]]
"""Computes texts (with their words, where these are given), telling tokens where somebody listens."""


@dataclasses.dataclass(eq=False)
class Call:
    """Texts that somebody waits for.

    Attributes:
        wish: What is wanted of them.
        texts: At least one.
        words: One reasoning a text, if the wish says that they are given.
        on_token: Called in the worker's thread with a text's place and each token as it is written.
    """

    wish: Wish
    texts: Sequence[str]
    words: Sequence[str] | None = None
    on_token: OnToken | None = None
    future: concurrent.futures.Future[list[Embedded]] = dataclasses.field(default_factory=concurrent.futures.Future)
    results: dict[int, Embedded] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        # Texts of one length side by side need little padding.
        self.left = deque(sorted(range(len(self.texts)), key=lambda place: -len(self.texts[place])))


Part = list[tuple[Call, list[int]]]


class Queues:
    """Runs ``compute`` on one thread of its own.

    Args:
        compute: Called with equal wishes only, and never from two threads at once.
        question_batch: Most questions at once.
        document_batch: Most documents at once.
        most: Calls that may be unfinished, of each kind.
        observe: Told the kind, the number of texts and the seconds of each batch.
    """

    def __init__(
        self,
        compute: Compute,
        question_batch: int,
        document_batch: int,
        most: int,
        observe: Callable[[Kind, int, float], object] = lambda *_: None,
    ) -> None:
        self._compute, self._observe, self.most = compute, observe, most
        self._sizes: dict[Kind, int] = {"query": question_batch, "document": document_batch}
        self._waiting: dict[Kind, deque[Call]] = {"query": deque(), "document": deque()}
        self._unfinished: dict[Kind, set[Call]] = {"query": set(), "document": set()}
        self._per_call: dict[Kind, float] = {"query": 0.05, "document": 0.5}
        self._changed = threading.Condition()
        self._closed = False
        self._in_a_row = 0
        self._thread = threading.Thread(target=self._work, name="searchr3-embed-server", daemon=True)
        self._thread.start()

    def waiting(self, kind: str) -> int:
        """Calls of a kind that are not finished."""
        return len(self._unfinished[kind])  # type: ignore[index]

    def submit(self, call: Call) -> asyncio.Future[list[Embedded]]:
        """Takes a call; cancelling the future takes it back.

        Raises:
            QueueFullError: Too many wait.
            QueueClosedError: No more are taken.
        """
        kind = call.wish.kind
        with self._changed:
            if self._closed:
                raise QueueClosedError
            if len(self._unfinished[kind]) >= self.most:
                raise QueueFullError(self._per_call[kind] * self.most)
            self._unfinished[kind].add(call)
            self._waiting[kind].append(call)
            self._changed.notify()
        call.future.add_done_callback(lambda _: self._unfinished[kind].discard(call))
        return asyncio.wrap_future(call.future)

    def close(self, seconds: float | None = None) -> None:
        """Takes no more calls, finishes those that wait, and waits for the thread to end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                idle = not any(self._waiting.values())
                while not any(self._waiting.values()):
                    if self._closed:
                        return
                    self._changed.wait()
            if idle:
                time.sleep(_GATHER_SECONDS)
            with self._changed:
                kind, part = self._next()
            if part:
                self._run(kind, part)
                with self._changed:
                    # What is left of a call goes behind the others: a long one does not hold up short ones.
                    self._waiting[kind] += [call for call, _ in part if call.left and not call.future.done()]

    def _next(self) -> tuple[Kind, Part]:
        """What to compute now; it is taken out of its queue."""
        for kind, queue in self._waiting.items():
            self._waiting[kind] = deque(call for call in queue if not call.future.done())
        questions, documents = self._waiting["query"], self._waiting["document"]
        turn: Kind = "query" if questions and not (documents and self._in_a_row >= _QUESTIONS_IN_A_ROW) else "document"
        self._in_a_row = self._in_a_row + 1 if turn == "query" else 0
        queue = self._waiting[turn]
        if not queue:
            return turn, []
        texts = self._sizes[turn]
        characters = texts * _CHARACTERS
        part: Part = []
        for call in [call for call in queue if call.wish == queue[0].wish]:
            places: list[int] = []
            while call.left and texts > 0 and (characters > 0 or turn == "query"):
                places.append(call.left.popleft())
                texts -= 1
                characters -= len(call.texts[places[-1]])
            if not places:
                break
            part.append((call, places))
        for call, _ in part:
            queue.remove(call)
        return turn, part

    def _run(self, kind: Kind, part: Part) -> None:
        rows = [(call, place) for call, places in part for place in places]
        wish = part[0][0].wish
        texts = [call.texts[place] for call, place in rows]
        words = [call.words[place] for call, place in rows if call.words is not None] if wish.given else None
        listening = any(call.on_token for call, _ in part)

        def tell(row: int, token: int) -> None:
            call, place = rows[row]
            if call.on_token is not None and not call.future.done():
                call.on_token(place, token)

        began = time.perf_counter()
        try:
            found = self._compute(wish, texts, words, tell if listening else None)
        except BaseException as error:  # the callers get it, and the worker goes on
            if len(part) > 1:  # one bad call must not fail its neighbours
                for each in part:
                    self._run(kind, [each])
            elif part[0][0].future.set_running_or_notify_cancel():
                part[0][0].future.set_exception(error)
            return
        seconds = time.perf_counter() - began
        self._observe(kind, len(rows), seconds)
        self._per_call[kind] += 0.1 * (seconds / len(part) - self._per_call[kind])
        for (call, place), embedded in zip(rows, found, strict=True):
            call.results[place] = embedded
        for call, _ in part:
            if len(call.results) == len(call.texts) and call.future.set_running_or_notify_cancel():
                call.future.set_result([call.results[place] for place in range(len(call.texts))])
