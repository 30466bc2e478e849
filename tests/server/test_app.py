"""What stands around the calls: probes, keys, limits, ids, metrics, log lines, models, errors."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.server.app import create_app, from_environment
from searchr3_embed.server.recording import LineFormatter
from searchr3_embed.server.settings import Settings
from searchr3_embed.server.state import State

ASKED = {"model": "tiny", "input": "why?"}


def error(reply: Any) -> dict[str, Any]:
    assert set(reply.json()) == {"error"} and set(reply.json()["error"]) == {"message", "type", "param", "code"}
    return reply.json()["error"]


def test_models(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["tiny", "tiny:query", "tiny:document"]
    assert client.get("/v1/models/tiny:query").json() == listed["data"][1]
    assert error(client.get("/v1/models/other"))["code"] == "model_not_found"


def test_addresses_that_are_none(client: TestClient) -> None:
    assert (client.get("/v2").status_code, client.get("/v1/embeddings").status_code) == (404, 405)
    assert error(client.get("/v1/embeddings"))["type"] == "invalid_request_error"


def test_keys(client_of: Callable[..., TestClient]) -> None:
    server = client_of(api_keys=("first-key", "second"))
    assert [server.get(path).status_code for path in ("/health", "/ready", "/metrics", "/docs")] == [200] * 4
    for key in ("first-key", "second"):
        reply = server.post("/v1/embeddings", json=ASKED, headers={"Authorization": f"Bearer {key}"})
        assert reply.status_code == 200
    for header in ("", "Bearer", "Bearer ", "Bearer first", "Bearer first-key2", "Basic first-key", "first-key"):
        for method, path in (
            ("POST", "/v1/embeddings"),
            ("POST", "/v1/reason"),
            ("GET", "/v1/models"),
            ("GET", "/v1/x"),
        ):
            reply = server.request(method, path, json=ASKED, headers={"Authorization": header} if header else {})
            assert reply.status_code == 401, header
            assert error(reply)["code"] == "invalid_api_key" and reply.headers["WWW-Authenticate"] == "Bearer"
    assert server.post("/v1/embeddings", json=ASKED, headers={b"Authorization": b"Bearer k\xe9y"}).status_code == 401


def test_limits_of_a_call(client_of: Callable[..., TestClient]) -> None:
    server = client_of(max_texts=3, max_body_mb=1)
    assert server.post("/v1/embeddings", json={**ASKED, "input": ["a"] * 3}).status_code == 200
    many = server.post("/v1/embeddings", json={**ASKED, "input": ["a"] * 4})
    assert many.status_code == 413 and "3 texts, got 4" in error(many)["message"]
    large = json.dumps({**ASKED, "input": "a" * (1 << 20)}).encode()
    for content in (large, iter([large[:100], large[100:]])):  # announced, and not
        reply = server.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
        assert reply.status_code == 413 and "1,048,576 bytes" in error(reply)["message"]


def test_request_ids(client: TestClient) -> None:
    assert client.get("/health", headers={"X-Request-ID": "abc-1"}).headers["X-Request-ID"] == "abc-1"
    made = [client.get("/health").headers["X-Request-ID"] for _ in range(2)]
    assert made[0] != made[1] and len(made[0]) == 32
    assert len(client.get("/health", headers={"X-Request-ID": "x" * 500}).headers["X-Request-ID"]) == 32


def test_metrics(client_of: Callable[..., TestClient], embedder: ReasoningEmbedder) -> None:
    server = client_of()
    server.post("/v1/embeddings", json={**ASKED, "input": ["why?", "ice " * 200]})
    server.post("/v1/embeddings", json={**ASKED, "model": "tiny:query"})
    server.post("/v1/embeddings", json={**ASKED, "model": "other"})
    page = server.get("/metrics").text
    for line in (
        'searchr3_requests_total{kind="document",path="/v1/embeddings",status="200"} 1.0',
        'searchr3_requests_total{kind="query",path="/v1/embeddings",status="200"} 1.0',
        'searchr3_requests_total{kind="",path="/v1/embeddings",status="404"} 1.0',
        'searchr3_request_seconds_count{kind="query",path="/v1/embeddings"} 1.0',
        'searchr3_batch_texts_sum{kind="document"} 2.0',
        'searchr3_waiting_calls{kind="query"} 0.0',
        "searchr3_truncated_texts_total 1.0",
    ):
        assert line in page
    written = embedder.reason("why?").reasoning_tokens
    assert f'searchr3_tokens_total{{kind="reasoning"}} {float(written)}' in page


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("log_texts", [False, True])
def test_log_lines(
    client_of: Callable[..., TestClient], caplog: pytest.LogCaptureFixture, form: str, log_texts: bool
) -> None:
    server = client_of(log_texts=log_texts)
    with caplog.at_level(logging.INFO, "searchr3_embed.server"):
        caplog.clear()
        server.post("/v1/embeddings", json={**ASKED, "input": "a secret\nline"}, headers={"X-Request-ID": "id-7"})
    assert len(caplog.records) == 1
    line = LineFormatter(form).format(caplog.records[0])
    assert "\n" not in line and "id-7" in line and ("secret" in line) is log_texts
    if form == "json":
        fields = json.loads(line)
        assert (fields["status"], fields["kind"], fields["texts"]) == (200, "document", 1)
        assert fields["ms"] > 0 and fields["tokens"] > 2


def test_a_failure_of_ours_is_one_error_and_its_log_says_why(
    client_of: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    server = client_of()
    state: State = server.app.state.searchr3  # type: ignore[attr-defined]

    def fail(*_: Any) -> Any:
        raise RuntimeError("a part that broke")

    state.queues._compute = fail
    reply = server.post("/v1/embeddings", json=ASKED)
    assert reply.status_code == 500 and "broke" not in reply.text and error(reply)["type"] == "server_error"
    assert "a part that broke" in caplog.text


class Slow:
    """A server whose computation waits, and asynchronous clients of it."""

    def __init__(self, embedder: ReasoningEmbedder, **settings: Any) -> None:
        self.app = create_app(Settings(served_name="tiny", **settings), embedder)
        self.state: State = self.app.state.searchr3
        self.may_go, self.busy = threading.Event(), threading.Event()
        self.computed: list[str] = []

    async def __aenter__(self) -> Slow:
        self.lifespan = self.state.lifespan(self.app)
        await self.lifespan.__aenter__()
        while not self.state.ready:
            await asyncio.sleep(0.01)
        compute = self.state.queues._compute

        def waiting(wish: Any, texts: list[str], words: Any, on_token: Any) -> Any:
            self.busy.set()
            assert self.may_go.wait(60)
            self.computed += texts
            return compute(wish, texts, words, on_token)

        self.state.queues._compute = waiting
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test", timeout=60)
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.may_go.set()
        await self.client.aclose()
        await self.lifespan.__aexit__(None, None, None)

    def ask(self, text: str, **more: Any) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.client.post("/v1/embeddings", json={**ASKED, "input": text, **more}))

    async def until_waiting(self, calls: int, kind: str = "document") -> None:
        async with asyncio.timeout(60):
            while self.state.queues.waiting(kind) != calls:
                await asyncio.sleep(0.005)


async def test_when_too_many_wait_the_next_is_told_to_come_again(embedder: ReasoningEmbedder) -> None:
    async with Slow(embedder, max_waiting=2) as slow:
        taken = [slow.ask(text) for text in ("a", "b")]
        await slow.until_waiting(2)
        refused = await slow.ask("c")
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        assert error(refused)["type"] == "rate_limit_error"
        question = slow.ask("d", input_type="query")
        await slow.until_waiting(1, "query")
        slow.may_go.set()
        assert [(await task).status_code for task in [*taken, question]] == [200] * 3


async def test_draining_answers_what_was_taken_and_refuses_the_rest(embedder: ReasoningEmbedder) -> None:
    async with Slow(embedder) as slow:
        taken = slow.ask("a")
        await slow.until_waiting(1)
        slow.state.draining = True
        refused = await slow.ask("b")
        assert (refused.status_code, refused.headers["Connection"]) == (503, "close")
        assert int(refused.headers["Retry-After"]) >= 1 and error(refused)["code"] == "draining"
        assert (await slow.client.get("/ready")).status_code == 503
        assert (await slow.client.get("/health")).status_code == 200
        slow.may_go.set()
        assert (await taken).status_code == 200


async def test_past_the_deadline_nobody_waits_for_thoughts(embedder: ReasoningEmbedder) -> None:
    async with Slow(embedder) as slow:
        asked = slow.ask("why?", input_type="query", deadline_ms=30)
        await slow.until_waiting(2, "query")
        await slow.until_waiting(1, "query")  # the thinking left the queue
        slow.may_go.set()
        reply = (await asked).json()
        assert reply["deadline_exceeded"] is True
        expected = embedder.encode_query("why?", reason=False)
        assert abs(reply["data"][0]["embedding"] - expected).max() < 1e-6


async def test_a_client_that_goes_away_leaves_the_queue(embedder: ReasoningEmbedder) -> None:
    async with Slow(embedder) as slow:
        first = slow.ask("first")
        await asyncio.to_thread(slow.busy.wait, 60)
        messages = iter(
            [{"type": "http.request", "body": json.dumps({**ASKED, "input": "gone"}).encode(), "more_body": False}]
        )
        leave = asyncio.Event()

        async def receive() -> Any:
            for message in messages:
                return message
            await leave.wait()
            return {"type": "http.disconnect"}

        sent = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/embeddings",
            "raw_path": b"/v1/embeddings",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        call = asyncio.create_task(slow.app(scope, receive, send))
        await slow.until_waiting(2)
        leave.set()
        await slow.until_waiting(1)
        await call
        slow.may_go.set()
        assert (await first).status_code == 200
        assert slow.computed == ["first"] and sent == []
        page = (await slow.client.get("/metrics")).text
        assert 'searchr3_requests_total{kind="document",path="/v1/embeddings",status="499"} 1.0' in page


async def test_not_ready_while_loading_and_after_a_failure(embedder: ReasoningEmbedder, monkeypatch: Any) -> None:
    from searchr3_embed.server import model

    loads = threading.Event()

    def load(settings: Settings) -> Any:
        loads.wait(60)
        raise ValueError("a damaged folder")

    monkeypatch.setattr(model, "load", load)
    app = create_app(Settings())
    state: State = app.state.searchr3
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        async with state.lifespan(app):
            assert (await client.get("/health")).status_code == 200
            for reply in (await client.get("/ready"), await client.post("/v1/embeddings", json=ASKED)):
                assert reply.status_code == 503 and error(reply)["code"] == "loading"
                assert int(reply.headers["Retry-After"]) >= 1
            loads.set()
            while state.failure is None:
                await asyncio.sleep(0.01)
            assert error(await client.get("/ready"))["code"] == "model_failed"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    import os

    for name in list(os.environ):
        if name.startswith("SEARCHR3_"):
            monkeypatch.delenv(name)
    yield monkeypatch


def test_settings_from_the_environment(environment: pytest.MonkeyPatch) -> None:
    assert Settings.from_environment() == Settings()
    given = {"API_KEY": "one,two three", "MAX_TEXTS": "7", "LOG_TEXTS": "true", "TOKEN_IDS": "openai", "MODEL": "a/b"}
    for name, value in given.items():
        environment.setenv(f"SEARCHR3_{name}", value)
    found = Settings.from_environment(max_texts=9, log_texts=None)
    assert found == Settings("a/b", api_keys=("one", "two", "three"), max_texts=9, log_texts=True, token_ids="openai")
    assert found.name == "b"
    environment.setenv("SEARCHR3_ALLOW_NO_KEY", "1")
    assert from_environment().state.searchr3.settings.max_texts == 7


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MAX_TEXTS", "many", "SEARCHR3_MAX_TEXTS must be an integer, got 'many'"),
        ("MAX_TEXTS", "0", "max_texts must be an integer from 1, got 0"),
        ("LOG_TEXTS", "maybe", "SEARCHR3_LOG_TEXTS must be 1 or 0, got 'maybe'"),
        ("TOKEN_IDS", "some", "token_ids must be one of"),
        ("API_KEY", "sch\xf6n", "printable ASCII"),
    ],
)
def test_bad_settings(environment: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    environment.setenv(f"SEARCHR3_{name}", value)
    with pytest.raises(ValueError, match=message):
        Settings.from_environment()


def test_without_a_key_only_this_machine_reaches_it(environment: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        Settings().check_reach(host)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(ValueError, match="--api-key"):
            Settings().check_reach(host)
        Settings(api_keys=("key",)).check_reach(host)
        Settings(allow_no_key=True).check_reach(host)
    with pytest.raises(ValueError, match="Another program"):
        from_environment()
