"""Clients that no one here wrote, over a socket, get the vectors of the embedder in process."""

from __future__ import annotations

import asyncio
import base64
import importlib.resources
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from searchr3_embed import ReasoningEmbedder
from tests.server.real import in_thread

TEXTS = ["which river flows through paris", "why?", "a glacier is a slow river of ice"]
KEY = "a-key"


@pytest.fixture(scope="module")
def offline_vocabulary() -> Iterator[None]:
    """tiktoken's cl100k_base, which langchain-openai and --token-ids openai use."""
    folder = importlib.resources.files("llama_index.core") / "_static" / "tiktoken_cache"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        yield


@pytest.fixture(scope="module")
def address(embedder: ReasoningEmbedder, offline_vocabulary: None) -> Iterator[str]:
    with in_thread(embedder, token_ids="openai", api_keys=(KEY,)) as address:
        yield address


def same(found: object, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(found, dtype=np.float32), expected, atol=1e-6, rtol=0)


def test_openai(address: str, embedder: ReasoningEmbedder) -> None:
    with openai.OpenAI(base_url=address, api_key=KEY) as client:
        for kind, expected in (("query", embedder.encode_query(TEXTS)), ("document", embedder.encode_document(TEXTS))):
            forms: list[dict[str, Any]] = [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}]
            for form in forms:
                reply = client.embeddings.create(input=TEXTS, model=f"tiny:{kind}", **form)
                rows = [row.embedding for row in reply.data]
                if form.get("encoding_format") == "base64":
                    rows = [row if isinstance(row, list) else openai_decoded(row) for row in rows]
                same(rows, expected)
            reply = client.embeddings.create(input=TEXTS, model="tiny", extra_body={"input_type": kind}, dimensions=8)
            same(
                [row.embedding for row in reply.data],
                expected[:, :8] / np.linalg.norm(expected[:, :8], axis=1)[:, None],
            )
        assert reply.usage.prompt_tokens > 0
        assert [model.id for model in client.models.list()] == ["tiny", "tiny:query", "tiny:document"]
        with pytest.raises(openai.NotFoundError, match="There is no model 'gpt'"):
            client.embeddings.create(input="a", model="gpt")
        with pytest.raises(openai.BadRequestError, match="dimensions must be from 1 to 48"):
            client.embeddings.create(input="a", model="tiny", dimensions=100)
    with openai.OpenAI(base_url=address, api_key="another") as client, pytest.raises(openai.AuthenticationError):
        client.embeddings.create(input="a", model="tiny")


def openai_decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


@pytest.mark.slow
async def test_openai_async(address: str, embedder: ReasoningEmbedder) -> None:
    async with openai.AsyncOpenAI(base_url=address, api_key=KEY) as client:
        calls = [client.embeddings.create(input=text, model="tiny:query") for text in TEXTS * 5]
        replies = await asyncio.gather(*calls)
    same([reply.data[0].embedding for reply in replies], embedder.encode_query(TEXTS * 5))


@pytest.mark.slow
@pytest.mark.parametrize("checked", [True, False])
def test_langchain(address: str, embedder: ReasoningEmbedder, checked: bool) -> None:
    """With the check it sends token ids of cl100k_base, without it texts."""
    import langchain_openai as langchain

    options = {"base_url": address, "api_key": KEY, "check_embedding_ctx_length": checked}
    questions = langchain.OpenAIEmbeddings(model="tiny:query", **options)
    documents = langchain.OpenAIEmbeddings(model="tiny:document", **options)
    same(documents.embed_documents(TEXTS), embedder.encode_document(TEXTS))
    same(questions.embed_query(TEXTS[0]), embedder.encode_query(TEXTS[0]))
    same(asyncio.run(questions.aembed_query(TEXTS[1])), embedder.encode_query(TEXTS[1]))


@pytest.mark.slow
def test_llama_index(address: str, embedder: ReasoningEmbedder) -> None:
    import llama_index.embeddings.openai as module

    options = {"api_base": address, "api_key": KEY}
    questions = module.OpenAIEmbedding(model_name="tiny:query", **options)
    documents = module.OpenAIEmbedding(model_name="tiny:document", **options)
    same(documents.get_text_embedding_batch(TEXTS), embedder.encode_document(TEXTS))
    same(questions.get_query_embedding(TEXTS[0]), embedder.encode_query(TEXTS[0]))
    same(asyncio.run(questions.aget_query_embedding(TEXTS[1])), embedder.encode_query(TEXTS[1]))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="no Node here")
def test_javascript(address: str, embedder: ReasoningEmbedder) -> None:
    """What Node brings itself: fetch, and a stream that is read as it comes."""
    script = """
    const [address, key, text] = process.argv.slice(1);
    const headers = {"Content-Type": "application/json", Authorization: `Bearer ${key}`};
    const post = (path, body) => fetch(address + path, {method: "POST", headers, body: JSON.stringify(body)});
    const vectors = await (await post("/embeddings", {model: "tiny:query", input: text})).json();
    const reply = await post("/reason", {model: "tiny", input: text, stream: true});
    const decoder = new TextDecoder();
    let events = "";
    for await (const part of reply.body) events += decoder.decode(part, {stream: true});
    console.log(JSON.stringify({embedding: vectors.data[0].embedding, events}));
    """
    result = subprocess.run(
        ["node", "--input-type=module", "-e", script, address, KEY, TEXTS[1]],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    same(found["embedding"], embedder.encode_query(TEXTS[1]))
    assert embedder.reason(TEXTS[1]).reasoning in found["events"] and found["events"].endswith("data: [DONE]\n\n")


@pytest.mark.slow
def test_openai_for_node(address: str, embedder: ReasoningEmbedder) -> None:
    """The npm package, where NODE_PATH leads to it (npm install openai)."""
    if (
        shutil.which("node") is None
        or subprocess.run(["node", "-e", "require('openai')"], capture_output=True).returncode
    ):
        pytest.skip("no Node with the package openai here")
    script = """
    const OpenAI = require("openai");
    const [baseURL, apiKey, ...input] = process.argv.slice(1);
    const client = new OpenAI({baseURL, apiKey});
    const ask = (options) => client.embeddings.create({model: "tiny:query", input, ...options});
    Promise.all([ask({}), ask({encoding_format: "float"})]).then((replies) =>
        console.log(JSON.stringify(replies.map((reply) => reply.data.map((row) => row.embedding)))));
    """
    result = subprocess.run(["node", "-e", script, address, KEY, *TEXTS], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for vectors in json.loads(result.stdout):
        same(vectors, embedder.encode_query(TEXTS))


@pytest.mark.slow
def test_schemathesis_finds_no_failure_and_no_break_of_the_schema(embedder: ReasoningEmbedder, tmp_path: Path) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with in_thread(embedder, token_ids="model") as address:
        command = ["run", address.removesuffix("/v1") + "/openapi.json", "--checks", checks, "--mode", "all"]
        command += ["--max-examples", "40", "--seed", "7", "--phases", "examples,coverage,fuzzing", "--no-color"]
        result = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", *command],
            capture_output=True,
            text=True,
            timeout=900,
            cwd=tmp_path,
        )
        with urllib.request.urlopen(address.removesuffix("/v1") + "/metrics") as page:
            counted = page.read().decode()
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr
    for path in ("/v1/embeddings", "/v1/reason"):
        taken = re.findall(rf'searchr3_requests_total{{kind="[a-z]*",path="{path}",status="200"}} ([0-9.]+)', counted)
        assert sum(map(float, taken)) > 5, "some of what it sends must be accepted"
