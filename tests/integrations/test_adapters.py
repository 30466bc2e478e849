"""What both adapters must do alike: true async, threads, forks, bad input, and the same vectors through every door."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_searchr3 import SearchR3Embeddings
from llama_index.embeddings.searchr3 import SearchR3Embedding
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder, requirements
from searchr3_embed.checkpoint import CheckpointError
from searchr3_embed.cli import main as cli

TEXTS = [
    "The csv module reads rows of comma-separated text.",
    "Glaciers are rivers of ice.",
    "Bread needs flour,\twater and time.",
    "how do rivers end?",
    "مرحبا بالعالم <|embed_token|> [SEP]",
]
# Searches as people type them: two words.
SEARCHES = [
    f"{kind} {thing}"
    for kind in ("alpine", "cheap", "french", "home", "modern", "old", "quick", "wild")
    for thing in ("bread", "bridges", "flowers", "gardens", "glaciers", "music", "recipes", "rivers")
]


@dataclasses.dataclass(frozen=True)
class Door:
    """One framework's names for the same calls."""

    make: Callable[..., Any]
    query: Callable[[Any, Any], list[float]]
    documents: Callable[[Any, Any], list[list[float]]]
    aquery: Callable[[Any, Any], Awaitable[list[float]]]
    adocuments: Callable[[Any, Any], Awaitable[list[list[float]]]]


DOORS = {
    "langchain": Door(
        SearchR3Embeddings,
        SearchR3Embeddings.embed_query,
        SearchR3Embeddings.embed_documents,
        SearchR3Embeddings.aembed_query,
        SearchR3Embeddings.aembed_documents,
    ),
    "llama-index": Door(
        SearchR3Embedding,
        SearchR3Embedding.get_query_embedding,
        SearchR3Embedding.get_text_embedding_batch,
        SearchR3Embedding.aget_query_embedding,
        SearchR3Embedding.aget_text_embedding_batch,
    ),
}


@pytest.fixture(scope="module", params=sorted(DOORS))
def door(request: pytest.FixtureRequest) -> Door:
    return DOORS[request.param]


@pytest.fixture(scope="module")
def adapter(door: Door) -> Any:
    """The framework's class over the packaged model."""
    return door.make(device="cpu")


@pytest.fixture
def tiny(door: Door, mini_checkpoint: Path) -> Any:
    """The framework's class over a small random model."""
    return door.make(model_name=str(mini_checkpoint), device="cpu", max_reasoning_tokens=4)


@pytest.mark.slow
def test_same_text_same_vector_through_every_door(tmp_path: Path) -> None:
    core = ReasoningEmbedder("searchr3", device="cpu")
    queries, documents = core.encode_query(TEXTS), core.encode_document(TEXTS)
    for door in DOORS.values():
        adapter = door.make(device="cpu")
        np.testing.assert_allclose([door.query(adapter, text) for text in TEXTS], queries, rtol=0, atol=1e-5)
        np.testing.assert_allclose(door.documents(adapter, TEXTS), documents, rtol=0, atol=1e-5)
    core.save_pretrained(str(tmp_path / "model"))
    stock = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(stock.encode(TEXTS), documents, rtol=0, atol=1e-5)
    lines = tmp_path / "texts.txt"
    lines.write_text("\n".join(TEXTS), encoding="utf-8")
    for side, expected in (("query", queries), ("document", documents)):
        output = tmp_path / f"{side}.npy"
        assert cli.main(["encode", str(lines), "--as", side, "--device", "cpu", "--output", str(output)]) == 0
        np.testing.assert_allclose(np.load(output), expected, rtol=0, atol=1e-5)


@pytest.mark.timing
async def test_64_calls_at_once_take_less_than_a_fifth_of_64_in_turn(door: Door, adapter: Any) -> None:
    await door.aquery(adapter, "warm up")
    sequential, concurrent = 0.0, []
    for part in range(4):  # both kinds in turns, so that a machine that is busy for a while slows down both
        began = time.perf_counter()
        in_turn = [await door.aquery(adapter, search) for search in SEARCHES[part::4]]
        sequential += time.perf_counter() - began
        began = time.perf_counter()
        at_once = await asyncio.gather(*(door.aquery(adapter, search) for search in SEARCHES))
        concurrent.append(time.perf_counter() - began)
        np.testing.assert_allclose(at_once[part::4], in_turn, atol=1e-5)
    # The least of the four is what nothing disturbed; the 64 in turn are one measurement, spread over all of them.
    assert min(concurrent) < sequential / 5, (concurrent, sequential)


@pytest.mark.timing
async def test_the_event_loop_is_never_blocked_for_50_ms(door: Door, adapter: Any) -> None:
    async def longest_gap() -> float:
        longest = 0.0
        work = asyncio.gather(
            *(door.aquery(adapter, search) for search in SEARCHES), door.adocuments(adapter, SEARCHES)
        )
        while not work.done():
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - began)
        await work
        return longest

    await door.aquery(adapter, "warm up")
    # A busy machine lets any process wait now and then; what blocks the loop itself blocks it every time.
    gaps = [await longest_gap() for _ in range(4)]
    assert min(gaps) < 0.05, gaps


async def test_a_bad_or_cancelled_call_harms_no_other(door: Door, adapter: Any) -> None:
    calls: list[Any] = [asyncio.ensure_future(door.aquery(adapter, search)) for search in SEARCHES[:7]]
    bad = [asyncio.ensure_future(door.aquery(adapter, value)) for value in (5, None, ["a"])]
    await asyncio.sleep(0)
    calls[3].cancel()
    results = await asyncio.gather(*calls, *bad, return_exceptions=True)
    assert isinstance(results[3], asyncio.CancelledError)
    assert [type(result) for result in results[7:]] == [TypeError] * 3
    for number in (0, 1, 2, 4, 5, 6):
        np.testing.assert_allclose(results[number], door.query(adapter, SEARCHES[number]), atol=1e-5)


def test_a_new_event_loop_works_after_the_old_one_closed(door: Door, tiny: Any) -> None:
    async def leave_early() -> None:
        asyncio.ensure_future(door.aquery(tiny, "left behind"))
        await asyncio.sleep(0)

    expected = door.query(tiny, TEXTS[0])
    for _ in range(2):
        np.testing.assert_allclose(asyncio.run(door.aquery(tiny, TEXTS[0])), expected, atol=1e-5)
        asyncio.run(leave_early())


def test_eight_threads_of_200_texts(door: Door, tiny: Any) -> None:
    texts = [f"{text} {number}" for number in range(40) for text in TEXTS]
    documents = np.array(door.documents(tiny, texts))
    queries = np.array([door.query(tiny, text) for text in texts[:25]])

    def hammer(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(texts))
        np.testing.assert_allclose(door.documents(tiny, [texts[i] for i in order]), documents[order], atol=1e-5)
        for i in order[order < 25]:
            np.testing.assert_allclose(door.query(tiny, texts[i]), queries[i], atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hammer, range(8)))


def test_threads_that_come_first_together_load_one_model(door: Door, tiny: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len({id(embedder) for embedder in pool.map(lambda _: tiny.embedder, range(8))}) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_after_loading_embeds(door: Door, tiny: Any) -> None:
    expected = asyncio.run(door.aquery(tiny, TEXTS[0]))  # model and worker thread are there now
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(30)  # a child that hangs must not hang the tests
            vectors = [door.query(tiny, TEXTS[0]), asyncio.run(door.aquery(tiny, TEXTS[0]))]
            status = int(not np.allclose(vectors, expected, atol=1e-5))
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_a_copy_with_other_settings_uses_them(door: Door, tiny: Any, qwen2_checkpoint: Path) -> None:
    texts = [door.query(tiny, TEXTS[0])]
    for changed in ({"max_reasoning_tokens": 0}, {"reason_queries": False}, {"model_name": str(qwen2_checkpoint)}):
        copied = tiny.model_copy(update=changed)
        settings = {"model_name": tiny.model_name, "device": "cpu", "max_reasoning_tokens": 4}
        fresh = door.make(**{**settings, **changed})
        np.testing.assert_allclose(door.query(copied, TEXTS[0]), door.query(fresh, TEXTS[0]), atol=1e-5)
        texts.append(door.query(copied, TEXTS[0]))
    assert len({tuple(np.round(text, 3)) for text in texts}) == 4


def test_a_missing_model_is_named(door: Door) -> None:
    lazy = door.make(model_name="no/such/folder")  # nothing loads yet
    with pytest.raises(CheckpointError, match="no/such/folder"):
        door.query(lazy, "hello")
    with pytest.raises(CheckpointError, match="no/such/folder"):
        asyncio.run(door.adocuments(lazy, ["hello"]))


def test_inputs_that_are_no_texts(door: Door, tiny: Any) -> None:
    for value in (None, 5, b"bytes", ["a"], {"text": "a"}):
        with pytest.raises(TypeError, match=r"must be a str|must be a sequence of str"):
            door.query(tiny, value)
    with pytest.raises(TypeError, match="Item 1 is None"):
        door.documents(tiny, ["a", None])
    with pytest.raises(TypeError, match="Item 1 is 5"):
        asyncio.run(door.adocuments(tiny, ["a", 5]))
    with pytest.raises(ValueError, match=r"lone surrogate U\+D83D"):
        door.query(tiny, "abc \ud83d")
    assert door.documents(tiny, []) == asyncio.run(door.adocuments(tiny, [])) == []
    assert len(door.query(tiny, "")) == 32


FRAMEWORKS = [
    ("langchain-searchr3", "langchain_searchr3", "langchain-core"),
    ("llama-index-embeddings-searchr3", "llama_index.embeddings.searchr3", "llama-index-core"),
]


@pytest.mark.parametrize(("distribution", "module", "framework"), FRAMEWORKS)
@pytest.mark.parametrize("found", [None, "0.0.9"])
def test_a_missing_or_old_framework_is_named(
    distribution: str, module: str, framework: str, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = importlib.metadata.version

    def version(name: str) -> str:
        if name != framework:
            return versions(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    requirements.check(distribution)  # what is installed here is right
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ImportError) as error:
        requirements.check(distribution)
    assert f"{distribution} needs {framework}" in str(error.value)
    assert ("0.0.9 is installed" if found else "not installed") in str(error.value)
    assert f'pip install "{framework}' in str(error.value)


@pytest.mark.parametrize(("distribution", "module", "framework"), FRAMEWORKS)
def test_an_import_without_the_framework_says_what_to_install(distribution: str, module: str, framework: str) -> None:
    """In a process of its own, where the framework's metadata and modules are hidden."""
    hidden = framework.replace("-", "_")
    code = f"""
import importlib.metadata, sys
find = importlib.metadata.MetadataPathFinder.find_distributions
def without(context=importlib.metadata.DistributionFinder.Context()):
    return (d for d in find(context) if d.name != {framework!r})
importlib.metadata.MetadataPathFinder.find_distributions = without
sys.modules[{hidden!r}] = sys.modules["llama_index.core"] = None
import {module}
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 1
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {distribution} needs {framework}")
    assert f'which is not installed. Run: pip install "{framework}' in last
