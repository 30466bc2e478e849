"""``POST /v1/reason``: the trace, and events while it is written."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from searchr3_embed import ReasoningEmbedder

QUESTIONS = ["which river flows through paris", "why?", "how do i read a csv file"]


def post(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/reason", json={"model": "tiny", "input": QUESTIONS, **body})


def test_the_trace(client: TestClient, embedder: ReasoningEmbedder) -> None:
    reply = post(client, include_embedding=True).json()
    for row, trace in zip(reply["data"], embedder.reason(QUESTIONS), strict=True):
        np.testing.assert_allclose(row.pop("embedding"), trace.embedding, atol=1e-6)
        assert row == {
            "object": "reasoning",
            "index": QUESTIONS.index(trace.text),
            "text": trace.text,
            "reasoning": trace.reasoning,
            "finish_reason": trace.finish_reason,
            "prompt_tokens": trace.prompt_tokens,
            "reasoning_tokens": trace.reasoning_tokens,
        }
    one = post(client, input=QUESTIONS[1], max_reasoning_tokens=0).json()
    assert [(row["text"], row["reasoning_tokens"]) for row in one["data"]] == [(QUESTIONS[1], 0)]
    assert "embedding" not in one["data"][0]
    assert one["usage"]["reasoning_tokens"] == 0


def events(reply: Any) -> list[Any]:
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    parts = reply.text.split("\n\n")
    assert parts.pop() == "" and parts.pop() == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_words_stream_while_they_are_written(client: TestClient, embedder: ReasoningEmbedder) -> None:
    whole = post(client).json()
    found = events(post(client, stream=True))
    kinds = [event["type"] for event in found]
    deltas = kinds.count("reasoning.delta")
    assert deltas > len(QUESTIONS)
    assert kinds == ["reasoning.delta"] * deltas + ["reasoning.done"] * len(QUESTIONS) + ["usage"]
    told = {index: "" for index in range(len(QUESTIONS))}
    for event in found[:deltas]:
        told[event["index"]] += event["delta"]
    done = [{name: value for name, value in event.items() if name != "type"} for event in found[deltas:-1]]
    assert done == whole["data"]
    assert list(told.values()) == [row["reasoning"] for row in done]
    assert found[-1]["usage"] == whole["usage"]


def test_errors_come_before_the_stream(client: TestClient) -> None:
    for body, status in (({"input": []}, 400), ({"model": "other"}, 404), ({"max_reasoning_tokens": 99_999}, 400)):
        reply = post(client, stream=True, **body)
        assert reply.status_code == status and reply.json()["error"]["message"]


@pytest.mark.parametrize("name", ["tiny:document"])
def test_documents_are_not_thought_about(client: TestClient, name: str) -> None:
    assert "model says document" in post(client, model=name).json()["error"]["message"]
