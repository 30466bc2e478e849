"""One log line a request, its id, and the metrics of it."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from searchr3_embed.server import errors
from searchr3_embed.server.metrics import Metrics

logger = logging.getLogger(__name__)

# Those with a label of their own; any other path would make a new one.
_PATHS = ("/v1/embeddings", "/v1/reason", "/v1/models", "/health", "/ready", "/metrics")
_LONGEST_ID = 128
_GONE = 499
_KEY = "searchr3.record"


@dataclasses.dataclass
class Record:
    """What is known of a request."""

    request_id: str
    method: str
    path: str
    began: float
    keeps_texts: bool
    kind: str = ""
    status: int = 0
    texts: int = 0
    tokens: int = 0
    reasoning_tokens: int = 0
    late: bool = False
    content: list[str] | None = None

    def see(self, texts: Sequence[str]) -> None:
        """Notes what was sent: the texts themselves only where that was asked for."""
        self.texts = len(texts)
        if self.keeps_texts:
            self.content = list(texts)

    def use(self, usage: dict[str, int], late: bool, metrics: Metrics) -> None:
        """Notes what it cost."""
        self.tokens, self.reasoning_tokens, self.late = usage["prompt_tokens"], usage["reasoning_tokens"], late
        metrics.tokens.labels("encoder").inc(self.tokens)
        metrics.tokens.labels("reasoning").inc(self.reasoning_tokens)

    def fields(self) -> dict[str, Any]:
        """For the log."""
        shown: dict[str, Any] = {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "ms": round(1000 * (time.perf_counter() - self.began), 1),
        }
        more = {
            "kind": self.kind,
            "texts": self.texts,
            "tokens": self.tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "deadline_exceeded": self.late,
            "content": self.content,
        }
        return shown | {name: value for name, value in more.items() if value}


def record_of(request: Request) -> Record:
    """The record of a request."""
    record = request.scope[_KEY]
    assert isinstance(record, Record)
    return record


class Recorder:
    """ASGI middleware, the outermost: what fails inside becomes an error of OpenAI's shape here.

    Args:
        app: What is behind it.
        metrics: Where requests are counted.
        keeps_texts: Whether texts are logged.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, keeps_texts: bool) -> None:
        self.app, self.metrics, self.keeps_texts = app, metrics, keeps_texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and writes its line when the reply has ended."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record(_request_id(scope), scope["method"], scope["path"], time.perf_counter(), self.keeps_texts)
        scope[_KEY] = record

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", record.request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception:
            logger.exception("Request %s failed", record.request_id)
            if not record.status:
                message = "The server failed on this request; its log says why."
                await JSONResponse(errors.body(message, 500, "internal_error"), 500)(scope, receive, noting)
        finally:
            self._finish(record)

    def _finish(self, record: Record) -> None:
        record.status = record.status or _GONE  # nobody waited for an answer
        path = next((known for known in _PATHS if record.path.startswith(known)), "other")
        self.metrics.requests.labels(path, record.kind, str(record.status)).inc()
        self.metrics.seconds.labels(path, record.kind).observe(time.perf_counter() - record.began)
        fields = record.fields()
        level = logging.DEBUG if path in ("/health", "/ready", "/metrics") else logging.INFO
        logger.log(level, "%s", _as_text(fields), extra={"fields": fields})


def _request_id(scope: Scope) -> str:
    """The caller's, if it can stand in a log line and a header; else a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    if 0 < len(given) <= _LONGEST_ID and given.isascii() and given.isprintable():
        return given
    return uuid.uuid4().hex


def _as_text(fields: dict[str, Any]) -> str:
    shown = dict(fields)
    start = f"{shown.pop('method')} {json.dumps(shown.pop('path'))[1:-1]} {shown.pop('status')} {shown.pop('ms')} ms"
    return " ".join([start, *(f"{name}={json.dumps(value)}" for name, value in shown.items())])


class LineFormatter(logging.Formatter):
    """One line a record: JSON, or text for people.

    Args:
        form: ``"json"`` or ``"text"``.
    """

    def __init__(self, form: str) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        if self.form != "json":
            return super().format(record)
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
        }
        fields = getattr(record, "fields", None)
        line |= fields if fields is not None else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
