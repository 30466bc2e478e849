"""The FastAPI program: its addresses, and what stands before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Request
from fastapi.security import HTTPBearer
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from searchr3_embed.files import shorten
from searchr3_embed.server import embeddings, errors, keys, reasoning, schemas
from searchr3_embed.server.errors import ApiError
from searchr3_embed.server.limits import BodyLimit
from searchr3_embed.server.recording import Recorder
from searchr3_embed.server.settings import Settings
from searchr3_embed.server.state import ClientGoneError, State

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder

_DESCRIPTION = """\
OpenAI's `/v1/embeddings` for an embedder whose questions think. What is a question is said by `input_type` or by the
name of the model: `NAME:query`, `NAME:document`."""
_GUARDED = "/v1/"
_MEANING = {
    400: "The request is not accepted.",
    401: "No key, or another one.",
    404: "There is no such model.",
    413: "The body is too large, or holds too many texts.",
    429: "Too many calls wait; Retry-After says when to try again.",
    503: "Loading or shutting down; Retry-After says when to try again.",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorReply, "description": meaning} for status, meaning in _MEANING.items()
}
_EVENTS: dict[str, Any] = {"text/event-stream": {}}
# FastAPI would say 422 for what is answered with 400.
_ERRORS["4XX"] = {"model": schemas.ErrorReply, "description": "Another refusal."}


class Gate:
    """ASGI middleware: who has no key, and calls that can't be answered now, are sent away before they are read.

    Args:
        app: What is behind it.
        state: Of the server.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and counts those that are being answered."""
        if scope["type"] != "http" or not scope["path"].startswith(_GUARDED):
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"").decode("utf-8", "surrogateescape")
        try:
            keys.check(self.state.settings.api_keys, given)
            refusal = self.state.refusal()
            if refusal is not None:
                raise refusal
        except ApiError as error:
            reply = errors.response(error)
            if self.state.draining:
                reply.headers["Connection"] = "close"
            await reply(scope, receive, send)
            return
        self.state.in_flight += 1
        try:
            await self.app(scope, receive, send)
        except ClientGoneError:
            pass
        finally:
            self.state.in_flight -= 1


def create_app(settings: Settings, embedder: ReasoningEmbedder | None = None) -> FastAPI:
    """The server as an ASGI program; it loads its model when it starts up.

    Args:
        settings: What it is told.
        embedder: One that is loaded already, in place of the settings' model; nobody else may call it meanwhile.
    """
    state = State(settings, embedder)
    app = FastAPI(title="searchr3", description=_DESCRIPTION, version="1", lifespan=state.lifespan, redoc_url=None)
    app.state.searchr3 = state
    errors.add_handlers(app)
    # The last one is the outermost.
    app.add_middleware(BodyLimit, most=settings.max_body_mb << 20)
    app.add_middleware(Gate, state=state)
    app.add_middleware(Recorder, metrics=state.metrics, keeps_texts=settings.log_texts)
    _add_calls(app, state)
    _add_probes(app, state)
    described = app.openapi()
    names = [model["id"] for model in _models(state)]
    for request in ("EmbeddingsRequest", "ReasonRequest"):
        described["components"]["schemas"][request]["properties"]["model"]["enum"] = names
    return app


def from_environment() -> FastAPI:
    """The server with settings from the environment, for other ASGI servers: ``uvicorn --factory`` and the like.

    Raises:
        ValueError: A variable is not accepted, or there is no key and ``SEARCHR3_ALLOW_NO_KEY`` is not 1.
    """
    settings = Settings.from_environment()
    settings.check_reach(None)
    return create_app(settings)


def _add_calls(app: FastAPI, state: State) -> None:
    # The key is checked by the gate; this makes /docs ask for it.
    guarded: dict[str, Any] = {"dependencies": [Depends(HTTPBearer(auto_error=False))], "responses": _ERRORS}

    @app.post("/v1/embeddings", response_model=schemas.EmbeddingsReply, **guarded)
    async def create_embeddings(asked: schemas.EmbeddingsRequest, request: Request) -> Response:
        """Vectors of texts. Questions think first, documents don't."""
        return await embeddings.answer(state, request, asked)

    events = {"content": _EVENTS, "description": "Traces; with `stream`, events while they are written."}
    streaming = {**guarded, "responses": {**_ERRORS, 200: events}}

    @app.post("/v1/reason", response_model=schemas.ReasonReply, **streaming)
    async def reason(asked: schemas.ReasonRequest, request: Request) -> Response:
        """What the model thinks about questions."""
        return await reasoning.answer(state, request, asked)

    @app.get("/v1/models", response_model=schemas.Models, **guarded)
    async def list_models() -> Any:
        """The names of the model."""
        return {"object": "list", "data": _models(state)}

    @app.get("/v1/models/{name}", response_model=schemas.Model, **guarded)
    async def show_model(name: str) -> Any:
        """One of them."""
        for model in _models(state):
            if model["id"] == name:
                return model
        raise ApiError(404, f"There is no model {shorten(ascii(name), 80)} here.", "model_not_found", "model")


def _add_probes(app: FastAPI, state: State) -> None:
    unready: dict[int | str, dict[str, Any]] = {503: _ERRORS[503]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready", responses=unready, response_model=dict[str, str])
    async def ready() -> Response:
        """Whether calls are taken: the weights are loaded, the first calls were made, and nothing is shutting down."""
        refusal = state.refusal()
        return errors.response(refusal) if refusal is not None else JSONResponse({"status": "ready"})

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(state.metrics.page(), media_type="text/plain; version=0.0.4")


def _models(state: State) -> list[dict[str, Any]]:
    names = [state.settings.name + suffix for suffix in ("", ":query", ":document")]
    return [{"id": name, "object": "model", "created": state.created, "owned_by": "searchr3-embed"} for name in names]
