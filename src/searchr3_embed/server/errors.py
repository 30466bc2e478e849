"""Errors as OpenAI's API has them, so that its clients understand and, where it helps, try again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from searchr3_embed.files import shorten

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "service_unavailable"}
_SHOWN = 200


class ApiError(HTTPException):
    """A refusal with a sentence for the caller.

    Args:
        status: HTTP status.
        message: One sentence.
        code: A word for programs.
        param: The field of the request that is meant.
        retry_after: Seconds after which the same call may succeed.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        headers: dict[str, str] = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.code, self.param = code, param


def add_handlers(app: FastAPI) -> None:
    """Makes every error of an app one of OpenAI's shape."""
    app.add_exception_handler(HTTPException, _answer)
    app.add_exception_handler(RequestValidationError, _answer_invalid)


def body(message: str, status: int, code: str | None, param: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response(error: ApiError) -> JSONResponse:
    """An error as the reply to a request."""
    return JSONResponse(
        body(str(error.detail), error.status_code, error.code, error.param), error.status_code, error.headers
    )


async def _answer(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return response(error)
    return JSONResponse(body(str(error.detail), error.status_code, None), error.status_code, error.headers)


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    param, message = _describe(error.errors())
    return JSONResponse(body(message, 400, "invalid_value", param), 400)


def _describe(problems: Any) -> tuple[str | None, str]:
    """Of a list of problems the first, and the field that it is about."""
    first: Mapping[str, Any] = problems[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return None, "The body is not valid JSON."
    if not place:
        return None, "The body must be a JSON object, sent with Content-Type: application/json."
    name = place[0]
    if name == "input" and first["type"] != "missing":
        return name, (
            "input must be a text, a list of texts, a list of token ids, or a list of such lists, and not empty, got "
            f"{_shown(_whole(problems))}."
        )
    if first["type"] == "missing":
        return name, f"{name} is missing."
    if first["type"] == "extra_forbidden":
        return name, f"There is no field {shorten(repr(name), 80)}."
    return name, f"{name}: {first['msg']}, got {_shown(first.get('input'))}."


def _whole(problems: Any) -> Any:
    """What was refused: of the alternatives of a union, the shallowest."""
    return min(problems, key=lambda problem: len(problem["loc"])).get("input")


def _shown(value: Any) -> str:
    return shorten(ascii(value), _SHOWN)
