"""``POST /v1/embeddings``."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import Request
from starlette.responses import Response

from searchr3_embed.server import replies
from searchr3_embed.server.errors import ApiError
from searchr3_embed.server.queues import Call, Kind, Wish
from searchr3_embed.server.recording import record_of
from searchr3_embed.server.schemas import EmbeddingsRequest
from searchr3_embed.server.state import State


async def answer(state: State, request: Request, asked: EmbeddingsRequest) -> Response:
    """Embeds what was sent."""
    record = record_of(request)
    kind: Kind = replies.kind_of(state, asked.model, asked.input_type) or "document"
    record.kind = kind
    texts = replies.check(state, _texts(state, asked))
    record.see(texts)
    _check_dimensions(state, asked.dimensions)
    wish = _wish(state, asked, kind)
    words = _words(state, asked.reasoning, wish, len(texts))
    if words is not None:
        wish = Wish("query", reason=True, given=True)
    counts, headers = await replies.count(state, request, texts, kind)
    deadline = None if asked.deadline_ms is None else record.began + asked.deadline_ms / 1000
    found, late = await state.embed(request, Call(wish, texts, words), deadline)
    used = replies.usage(counts, state.counter.most, found)
    record.use(used, late, state.metrics)
    if late:
        headers["X-SearchR3-Deadline"] = "exceeded"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": replies.encoded(embedded.vector, asked.encoding_format, asked.dimensions),
        }
        for index, embedded in enumerate(found)
    ]
    content = {"object": "list", "data": data, "model": asked.model, "usage": used, "deadline_exceeded": late}
    headers["Server-Timing"] = f"total;dur={1000 * (time.perf_counter() - record.began):.1f}"
    return replies.as_json(content, headers)


def _texts(state: State, asked: EmbeddingsRequest) -> Sequence[str]:
    """What was sent, token ids decoded."""
    given = asked.input
    if isinstance(given, str):
        return [given]
    rows = [given] if isinstance(given[0], int) else given
    if isinstance(rows[0], str):
        return rows
    if len(rows) > state.settings.max_texts:  # before they are decoded
        return [""] * len(rows)
    return state.decoder.texts(rows)


def _check_dimensions(state: State, dimensions: int | None) -> None:
    most = state.embedder.truncate_dim or state.embedder.get_embedding_dimension() or 0
    if dimensions is not None and dimensions > most:
        raise ApiError(400, f"dimensions must be from 1 to {most}, got {dimensions}.", "invalid_value", "dimensions")


def _wish(state: State, asked: EmbeddingsRequest, kind: Kind) -> Wish:
    replies.check_budget(state, asked.max_reasoning_tokens)
    side = state.embedder.question_side
    reason = asked.reason if asked.reason is not None else kind == "query"
    if reason and kind == "document" and side is not None:
        raise ApiError(
            400,
            "reason is for questions: set input_type to 'query'. Documents keep the encoder's vectors, so that an "
            "index stays valid.",
            "invalid_value",
            "reason",
        )
    if side is not None and not side.moves:  # thinking would change nothing
        reason = False
    return Wish(kind, reason, asked.max_reasoning_tokens if reason else None)


def _words(state: State, given: str | list[str] | None, wish: Wish, texts: int) -> list[str] | None:
    """The reasoning that comes with the questions, one each; the only place where the server looks at it."""
    if given is None:
        return None
    words = replies.check(state, [given] if isinstance(given, str) else given)
    problem = None
    if wish.kind != "query" or not wish.reason:
        problem = "reasoning is for questions that think: set input_type to 'query', and not reason to false."
    elif len(words) != texts:
        problem = f"reasoning must hold one text for each of the {texts} in input, got {len(words)}."
    if problem is not None:
        raise ApiError(400, problem, "invalid_value", "reasoning")
    return words
