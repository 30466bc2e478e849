"""``POST /v1/embeddings``: the vectors of the embedder in process, and one sentence for what is not accepted."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from searchr3_embed import ReasoningEmbedder

TEXTS = ["which river flows through paris", "why?", "a glacier is a slow river of ice", "", "how do i read a csv file"]


def vectors(reply: Any) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    rows = [row["embedding"] for row in reply.json()["data"]]
    if isinstance(rows[0], str):
        return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])
    return np.array(rows, dtype=np.float32)


def post(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/embeddings", json={"model": "tiny", "input": TEXTS, **body})


@pytest.mark.parametrize("form", ["float", "base64"])
def test_same_vectors_as_in_process(client: TestClient, embedder: ReasoningEmbedder, form: str) -> None:
    documents, questions = embedder.encode_document(TEXTS), embedder.encode_query(TEXTS)
    assert np.abs(documents - questions).max() > 0.01, "the test needs a thinker that moves questions"
    cases: list[tuple[dict[str, Any], np.ndarray]] = [
        ({}, documents),
        ({"input_type": "document"}, documents),
        ({"model": "tiny:document"}, documents),
        ({"input_type": "query"}, questions),
        ({"model": "tiny:query", "user": "someone"}, questions),
        ({"input_type": "query", "reason": False}, embedder.encode_query(TEXTS, reason=False)),
        ({"input_type": "query", "max_reasoning_tokens": 1}, embedder.encode_query(TEXTS, max_reasoning_tokens=1)),
        (
            {"input_type": "query", "dimensions": 8},
            embedder.encode_query(TEXTS, truncate_dim=8, normalize_embeddings=True),
        ),
    ]
    for body, expected in cases:
        reply = post(client, encoding_format=form, **body)
        np.testing.assert_allclose(vectors(reply), expected, atol=1e-6, rtol=0)
        assert [row["index"] for row in reply.json()["data"]] == list(range(len(TEXTS)))


def test_usage_counts_both_sides(client: TestClient, embedder: ReasoningEmbedder) -> None:
    read = sum(min(len(ids), embedder.max_seq_length) for ids in embedder.tokenizer(TEXTS)["input_ids"])
    written = sum(trace.reasoning_tokens for trace in embedder.reason(TEXTS))
    usage = post(client, input_type="query").json()["usage"]
    assert written > 0
    assert usage["prompt_tokens"] == read
    assert usage["reasoning_tokens"] == written
    assert usage["total_tokens"] == read + written
    assert post(client).json()["usage"]["reasoning_tokens"] == 0


def test_one_text(client: TestClient, embedder: ReasoningEmbedder) -> None:
    reply = post(client, input="why?")
    np.testing.assert_allclose(vectors(reply)[0], embedder.encode_document("why?"), atol=1e-6)


def test_long_texts_are_cut_and_said_so(
    client: TestClient, client_of: Callable[..., TestClient], embedder: ReasoningEmbedder
) -> None:
    long = ["river " * 100, "short", "ice " * 90]
    reply = post(client, input=long)
    assert reply.headers["X-SearchR3-Truncated"] == "2"
    np.testing.assert_allclose(vectors(reply), embedder.encode_document(long), atol=1e-6)
    assert "X-SearchR3-Truncated" not in post(client, input="short").headers
    refused = post(client_of(long_texts="refuse"), input=["short", *long])
    assert refused.status_code == 400
    assert "item 1 has" in refused.json()["error"]["message"]


def test_token_ids(client: TestClient, client_of: Callable[..., TestClient], embedder: ReasoningEmbedder) -> None:
    text = "which river flows through paris"
    ids = embedder.tokenizer(text, add_special_tokens=False)["input_ids"]
    refused = post(client, input=ids)
    assert refused.status_code == 400 and "check_embedding_ctx_length" in refused.json()["error"]["message"]
    own = client_of(token_ids="model")
    expected = embedder.encode_document(text)
    for given in (ids, [ids, ids]):
        np.testing.assert_allclose(vectors(post(own, input=given))[-1], expected, atol=1e-6)
    assert "got 999999" in post(own, input=[3, 999999]).json()["error"]["message"]
    assert "got -1" in post(own, input=[[3], [-1]]).json()["error"]["message"]


@pytest.mark.parametrize("deadline", [0, 600_000])
def test_past_the_deadline_there_is_the_encoders_vector(
    client: TestClient, embedder: ReasoningEmbedder, deadline: int
) -> None:
    reply = post(client, input_type="query", deadline_ms=deadline)
    late = deadline == 0
    assert reply.json()["deadline_exceeded"] is late
    assert reply.headers.get("X-SearchR3-Deadline") == ("exceeded" if late else None)
    np.testing.assert_allclose(vectors(reply), embedder.encode_query(TEXTS, reason=not late), atol=1e-6)


def test_words_that_are_there_already(client: TestClient, embedder: ReasoningEmbedder) -> None:
    questions, words = ["why?", "ice"], ["a river", "b"]
    reply = post(client, input=questions, input_type="query", reasoning=words)
    np.testing.assert_allclose(vectors(reply), embedder.encode_query(questions, reasoning=words), atol=1e-6)
    for body, problem in [
        ({"reasoning": ["one"], "input_type": "query"}, "one text for each"),
        ({"reasoning": "one"}, "input_type to 'query'"),
    ]:
        assert problem in post(client, input=questions, **body).json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"input": []}, 400, "input", "not empty, got []"),
        ({"input": [[]]}, 400, "input", "not empty, got [[]]"),
        ({"input": None}, 400, "input", "got None"),
        ({"input": {"a": 1}}, 400, "input", "got {'a': 1}"),
        ({"input": ["a", 1]}, 400, "input", "a list of texts"),
        ({"input": ["a", None]}, 400, "input", "a list of texts"),
        ({"input": True}, 400, "input", "got True"),
        ({"input": "\ud800"}, 400, "input", "input"),
        ({"model": "other"}, 404, "model", "no model 'other' here; this server has 'tiny', 'tiny:query'"),
        ({"model": "tiny:poem"}, 404, "model", "no model 'tiny:poem'"),
        ({"model": "tiny:query", "input_type": "document"}, 400, "input_type", "model says query"),
        ({"input_type": "poem"}, 400, "input_type", "'query' or 'document', got 'poem'"),
        ({"dimensions": 0}, 400, "dimensions", "greater than or equal to 1, got 0"),
        ({"dimensions": 10_000}, 400, "dimensions", "from 1 to 48, got 10000"),
        ({"encoding_format": "int8"}, 400, "encoding_format", "'float' or 'base64', got 'int8'"),
        ({"reason": True}, 400, "reason", "input_type to 'query'"),
        ({"max_reasoning_tokens": -1}, 400, "max_reasoning_tokens", "got -1"),
        ({"max_reasoning_tokens": 100_000}, 400, "max_reasoning_tokens", "got 100000"),
        ({"deadline_ms": -1}, 400, "deadline_ms", "got -1"),
        ({"frobnicate": 1}, 400, "frobnicate", "no field 'frobnicate'"),
    ],
)
def test_bad_requests_get_one_sentence(
    client: TestClient, body: dict[str, Any], status: int, param: str, message: str
) -> None:
    import json

    content = json.dumps({"model": "tiny", "input": TEXTS, **body})
    reply = client.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error["param"] == param and message in error["message"], error
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe"])
def test_bodies_that_are_no_requests(client: TestClient, content: bytes) -> None:
    reply = client.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error"


def test_recent_questions_are_remembered(client_of: Callable[..., TestClient], embedder: ReasoningEmbedder) -> None:
    server = client_of(question_cache=2)
    state = server.app.state.searchr3  # type: ignore[attr-defined]
    seen: list[list[str]] = []
    compute = state.queues._compute
    state.queues._compute = lambda wish, texts, words, tell: (
        seen.append(sorted(texts)) or compute(wish, texts, words, tell)
    )
    first = post(server, input=["a", "b"], input_type="query")
    again = post(server, input=["b", "a", "c"], input_type="query")
    post(server, input=["a"], input_type="query", reason=False)
    post(server, input=["a", "a"])  # documents are not
    assert seen == [["a", "b"], ["c"], ["a"], ["a", "a"]]
    np.testing.assert_array_equal(vectors(first)[::-1], vectors(again)[:2])
    expected = sum(trace.reasoning_tokens for trace in embedder.reason(["a", "b"]))
    assert first.json()["usage"]["reasoning_tokens"] == expected
