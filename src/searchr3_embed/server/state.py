"""What a running server holds: its embedder once that is loaded, the queues, the calls that are being answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request

from searchr3_embed.engine.cpu.threads import release_helpers
from searchr3_embed.server import model
from searchr3_embed.server.errors import ApiError
from searchr3_embed.server.metrics import Metrics
from searchr3_embed.server.queues import Call, Embedded, QueueClosedError, QueueFullError, Queues
from searchr3_embed.server.settings import Settings
from searchr3_embed.server.tokens import Counter, Decoder

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder

logger = logging.getLogger(__name__)

# What a client is told to wait for a server that loads, drains or is full.
_LOADING_SECONDS, _DRAINING_SECONDS, _MOST_SECONDS = 5, 10, 60


class ClientGoneError(Exception):
    """Nobody waits for the reply any more."""


class State:
    """Of one server.

    Args:
        settings: Its settings.
        embedder: One that is loaded already; None loads what the settings name.
    """

    def __init__(self, settings: Settings, embedder: ReasoningEmbedder | None = None) -> None:
        self.settings = settings
        self.created = int(time.time())
        self.draining = False
        self.in_flight = 0
        self.failure: Exception | None = None
        self.metrics = Metrics(lambda kind: self.queues.waiting(kind) if self.ready else 0)
        self.recent = model.RecentQuestions(settings.question_cache)
        self.ready = False
        self._given = embedder
        self.embedder: ReasoningEmbedder
        self.queues: Queues
        self.counter: Counter
        self.decoder: Decoder

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Loads while the server answers /health already; at the end, what was taken is computed."""
        loading = asyncio.create_task(asyncio.to_thread(self._load))
        try:
            yield
        finally:
            self.draining = True
            await loading
            if self.ready:
                self.ready = False
                # Calls that nobody waits for any more are left: the thread ends with the process.
                await asyncio.to_thread(self.queues.close, 0.0 if self.in_flight else None)

    def _load(self) -> None:
        try:
            began = time.perf_counter()
            self.embedder = self._given if self._given is not None else model.load(self.settings)
            self.counter = Counter(self.embedder)
            self.decoder = Decoder(self.settings.token_ids, self.embedder)
            model.warm_up(self.embedder)
        except Exception as error:
            self.failure = error
            logger.error("The model can't be served: %s", error)
            return
        finally:
            release_helpers()
        self.queues = Queues(
            partial(model.compute, self.embedder),
            self.settings.question_batch,
            self.settings.document_batch,
            self.settings.max_waiting,
            self._observe,
        )
        self.ready = True
        logger.info("%s is ready after %.1f s", self.settings.name, time.perf_counter() - began)

    def _observe(self, kind: str, texts: int, seconds: float) -> None:
        self.metrics.batch.labels(kind).observe(texts)
        self.metrics.computing.labels(kind).observe(seconds)

    def refusal(self) -> ApiError | None:
        """Why no call is taken now; None if they are."""
        if self.draining:
            return ApiError(503, "The server is shutting down.", "draining", retry_after=_DRAINING_SECONDS)
        if self.failure is not None:
            return ApiError(503, "The model can't be loaded; the server's log says why.", "model_failed")
        if not self.ready:
            return ApiError(503, "The model is being loaded.", "loading", retry_after=_LOADING_SECONDS)
        return None

    def submit(self, call: Call) -> asyncio.Future[list[Embedded]]:
        """Puts a call into its queue.

        Raises:
            ApiError: 429 if too many wait, 503 if the server is shutting down.
        """
        try:
            return self.queues.submit(call)
        except QueueFullError as error:
            seconds = max(1, min(_MOST_SECONDS, math.ceil(error.seconds)))
            raise ApiError(
                429,
                f"{self.queues.most} calls wait already; try again in {seconds} s.",
                "queue_full",
                retry_after=seconds,
            ) from None
        except QueueClosedError:
            raise ApiError(503, "The server is shutting down.", "draining", retry_after=_DRAINING_SECONDS) from None

    async def embed(self, request: Request, call: Call, deadline: float | None = None) -> tuple[list[Embedded], bool]:
        """What a call asks for, and whether the deadline went by and the questions did not think.

        Args:
            request: Where it comes from: if the client goes away, the call leaves its queue.
            call: The call.
            deadline: On ``time.perf_counter``.

        Raises:
            ApiError: It is not taken.
            ClientGoneError: Nobody waits for it any more.
        """
        wish, texts, words = call.wish, call.texts, call.words
        known = self.recent.find(wish, texts, words)
        places = [place for place, found in enumerate(known) if found is None]
        if not places:
            return [found for found in known if found is not None], False
        rest = Call(wish, [texts[place] for place in places], words and [words[place] for place in places])
        found, late = await self._compute(request, rest, deadline)
        if not late:
            self.recent.keep(wish, rest.texts, rest.words, found)
        computed = dict(zip(places, found, strict=True))
        return [known[place] or computed[place] for place in range(len(texts))], late

    async def _compute(self, request: Request, call: Call, deadline: float | None) -> tuple[list[Embedded], bool]:
        if deadline is None or not call.wish.reason or call.wish.kind != "query":
            return await unless_gone(request, self.submit(call)), False
        # The vector without thinking is computed first: when the time has come, it is there.
        plain = self.submit(Call(call.wish._replace(reason=False, budget=None, given=False), call.texts))
        thought = None
        try:
            thought = self.submit(call)
            try:
                return await unless_gone(request, thought, max(0.0, deadline - time.perf_counter())), False
            except TimeoutError:
                thought.cancel()
            return await unless_gone(request, plain), True
        finally:
            plain.cancel()
            if thought is not None:
                thought.cancel()


async def unless_gone(
    request: Request, future: asyncio.Future[list[Embedded]], seconds: float | None = None
) -> list[Embedded]:
    """Waits for a result as long as the client does.

    Raises:
        ClientGoneError: It went away; the future is cancelled.
        TimeoutError: The time is over; the future goes on.
    """
    gone = asyncio.create_task(is_gone(request))
    either: set[asyncio.Future[Any]] = {future, gone}
    try:
        done, _ = await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:  # the time to drain is up
        future.cancel()
        raise
    finally:
        gone.cancel()
    if future in done:
        return future.result()
    if gone in done:
        future.cancel()
        raise ClientGoneError
    raise TimeoutError


async def is_gone(request: Request) -> None:
    """Returns when the client has closed the connection; its request must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
