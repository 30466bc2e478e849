"""What several endpoints answer with: JSON with vectors in it, usage, the texts and the model that were asked for."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import Request
from starlette.responses import Response

from searchr3_embed.conversation import check_texts
from searchr3_embed.files import shorten
from searchr3_embed.server.errors import ApiError
from searchr3_embed.server.model import cut
from searchr3_embed.server.queues import Embedded, Kind
from searchr3_embed.server.state import State

# Of fewer characters the tokens are counted at once, which takes less than a hand-over to another thread.
_FEW_CHARACTERS = 20_000


def as_json(content: Any, headers: dict[str, str] | None = None) -> Response:
    """A reply; float32 arrays are written with the shortest digits that give the same numbers again."""
    return Response(dumps(content), media_type="application/json", headers=headers)


def dumps(content: Any) -> bytes:
    """JSON of what may hold arrays."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def encoded(vector: np.ndarray, form: str, dimensions: int | None = None) -> Any:
    """A vector as a reply holds it: numbers, or base64 of little-endian float32."""
    vector = np.ascontiguousarray(cut(vector, dimensions), dtype="<f4")
    return vector if form == "float" else base64.b64encode(vector.tobytes()).decode()


def usage(counts: Sequence[int], most: int, found: Sequence[Embedded]) -> dict[str, int]:
    """Tokens of a call: the encoder's, cut as it cuts, and the thinker's."""
    read = sum(min(count, most) if most else count for count in counts)
    traces = [embedded.trace for embedded in found if embedded.trace is not None]
    written = sum(trace.reasoning_tokens for trace in traces)
    return {
        "prompt_tokens": read,
        "reasoning_tokens": written,
        "thinker_prompt_tokens": sum(trace.prompt_tokens for trace in traces),
        "total_tokens": read + written,
    }


def kind_of(state: State, name: str, input_type: str | None) -> Kind | None:
    """What a model's name and ``input_type`` say that the texts are; None if they say nothing.

    Raises:
        ApiError: 404 for another model's name, 400 where the two contradict each other.
    """
    known = state.settings.name
    suffix = name.removeprefix(known)
    if not name.startswith(known) or suffix not in ("", ":query", ":document"):
        raise ApiError(
            404,
            f"There is no model {shorten(ascii(name), 80)} here; this server has {known!r}, '{known}:query' and "
            f"'{known}:document'.",
            "model_not_found",
            "model",
        )
    named = suffix.removeprefix(":")
    if named and input_type and named != input_type:
        raise ApiError(400, f"model says {named}, input_type says {input_type}.", "invalid_value", "input_type")
    return named or input_type or None  # type: ignore[return-value]


def check(state: State, texts: Sequence[str]) -> list[str]:
    """The texts, if there are not too many and all are texts.

    Raises:
        ApiError: 413 or 400.
    """
    most = state.settings.max_texts
    if len(texts) > most:
        raise ApiError(413, f"A call may hold {most:,} texts, got {len(texts):,}.", "too_many_texts", "input")
    try:
        return check_texts(texts)
    except ValueError as error:
        raise ApiError(400, f"input: {error}", "invalid_value", "input") from None


def check_budget(state: State, budget: int | None) -> None:
    """Refuses a budget of reasoning tokens that the model has no room for.

    Raises:
        ApiError: 400.
    """
    try:
        state.embedder.conversation.check_budget(budget)
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", "max_reasoning_tokens") from None


async def count(state: State, request: Request, texts: Sequence[str], kind: Kind) -> tuple[list[int], dict[str, str]]:
    """Tokens of each text, and a header that says how many texts are cut.

    Raises:
        ApiError: 400 if a text is too long and such texts are refused.
    """
    if sum(map(len, texts)) < _FEW_CHARACTERS:
        counts = state.counter.count(texts, kind)
    else:
        counts = await asyncio.to_thread(state.counter.count, texts, kind)
    most = state.counter.most
    long = [place for place, length in enumerate(counts) if most and length > most]
    if long and state.settings.long_texts == "refuse":
        raise ApiError(
            400,
            f"input: item {long[0]} has {counts[long[0]]:,} tokens, and {most:,} are read; split it into passages.",
            "text_too_long",
            "input",
        )
    state.metrics.cut.inc(len(long))
    return counts, {"X-SearchR3-Truncated": str(len(long))} if long else {}
