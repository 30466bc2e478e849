"""``POST /v1/reason``: the trace, whole or while it is written."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from searchr3_embed.server import errors, replies
from searchr3_embed.server.queues import Call, Embedded, OnToken, Wish
from searchr3_embed.server.recording import record_of
from searchr3_embed.server.schemas import ReasonRequest
from searchr3_embed.server.state import State, is_gone

logger = logging.getLogger(__name__)

# What stands in a decoded text for a character of which not all bytes are there yet.
_UNFINISHED = "\ufffd"


async def answer(state: State, request: Request, asked: ReasonRequest) -> Response:
    """Thinks about what was sent."""
    replies.kind_of(state, asked.model, "query")
    record = record_of(request)
    record.kind = "query"
    texts = replies.check(state, [asked.input] if isinstance(asked.input, str) else asked.input)
    record.see(texts)
    replies.check_budget(state, asked.max_reasoning_tokens)
    counts, headers = await replies.count(state, request, texts, "query")
    wish = Wish("query", reason=True, budget=asked.max_reasoning_tokens)

    def told(found: Sequence[Embedded]) -> dict[str, int]:
        used = replies.usage(counts, state.counter.most, found)
        record.use(used, False, state.metrics)
        return used

    if asked.stream:
        heard: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()
        call = Call(wish, texts, on_token=_telling(heard))
        future = state.submit(call)
        future.add_done_callback(lambda _: heard.put_nowait(None))
        events = _events(state, request, asked, future, heard, told)
        headers |= {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    found, _ = await state.embed(request, Call(wish, texts))
    data = [_trace(index, embedded, asked) for index, embedded in enumerate(found)]
    return replies.as_json({"object": "list", "data": data, "model": asked.model, "usage": told(found)}, headers)


def _telling(heard: asyncio.Queue[tuple[int, int] | None]) -> OnToken:
    """Carries tokens from the worker's thread to the event loop."""
    loop = asyncio.get_running_loop()

    def tell(place: int, token: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(heard.put_nowait, (place, token))

    return tell


async def _events(
    state: State,
    request: Request,
    asked: ReasonRequest,
    future: asyncio.Future[list[Embedded]],
    heard: asyncio.Queue[tuple[int, int] | None],
    told: Callable[[Sequence[Embedded]], dict[str, int]],
) -> AsyncIterator[bytes]:
    """Server-sent events: what was written since the last one, and at the end the whole trace."""
    written: dict[int, list[int]] = {}
    shown: dict[int, str] = {}
    gone = asyncio.create_task(is_gone(request))
    try:
        while True:
            waiting = asyncio.create_task(heard.get())
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                return
            token = waiting.result()
            if token is None:
                break
            place, number = token
            written.setdefault(place, []).append(number)
            text = state.embedder.conversation.decode(written[place])
            before = shown.get(place, "")
            if text != before and text.startswith(before) and not text.endswith(_UNFINISHED):
                shown[place] = text
                yield _event({"type": "reasoning.delta", "index": place, "delta": text[len(before) :]})
        try:
            found = future.result()
        except Exception:
            logger.exception("A stream failed")
            yield _event({"type": "error", **errors.body("The server failed.", 500, "internal_error")})
            return
        for index, embedded in enumerate(found):
            yield _event({"type": "reasoning.done", **_trace(index, embedded, asked)})
        yield _event({"type": "usage", "model": asked.model, "usage": told(found)})
        yield b"data: [DONE]\n\n"
    finally:
        gone.cancel()
        future.cancel()


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + replies.dumps(content) + b"\n\n"


def _trace(index: int, embedded: Embedded, asked: ReasonRequest) -> dict[str, Any]:
    trace = embedded.trace
    assert trace is not None
    content = {
        "object": "reasoning",
        "index": index,
        "text": trace.text,
        "reasoning": trace.reasoning,
        "finish_reason": trace.finish_reason,
        "prompt_tokens": trace.prompt_tokens,
        "reasoning_tokens": trace.reasoning_tokens,
    }
    if asked.include_embedding:
        content["embedding"] = replies.encoded(embedded.vector, asked.encoding_format)
    return content
