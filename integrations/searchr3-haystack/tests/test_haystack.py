"""What Haystack promises of embedders, without weights where none are needed, and pipelines with real ones."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.searchr3 import SearchR3DocumentEmbedder, SearchR3TextEmbedder

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.lazy_embedder import LazyEmbedder

TEXTS = [
    "The csv module reads rows of comma-separated text.",
    "Glaciers are rivers of ice.",
    "Bread needs flour,\nwater and\ttime.",
]
QUESTION = "load a spreadsheet export"
CPU = ComponentDevice.from_str("cpu")
MODULE = "haystack_integrations.components.embedders.searchr3"


@pytest.fixture(scope="module")
def core() -> ReasoningEmbedder:
    return ReasoningEmbedder("searchr3", device="cpu")


@pytest.fixture
def loaded(core: ReasoningEmbedder, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Components take the model that is there, and note what they asked for."""
    asked: list[Any] = []

    def get(self: LazyEmbedder, *key: Any) -> ReasoningEmbedder:
        asked.append(key)
        return core

    async def aget(self: LazyEmbedder, *key: Any) -> ReasoningEmbedder:
        return get(self, *key)

    monkeypatch.setattr(LazyEmbedder, "get", get)
    monkeypatch.setattr(LazyEmbedder, "aget", aget)
    return asked


class FakeEmbedder:
    """Stands in for the model: what it is given comes back."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], dict[str, Any]]] = []

    def encode_document(self, texts: list[str], **options: Any) -> np.ndarray:
        self.calls.append((texts, options))
        return np.arange(len(texts), dtype=np.float32)[:, None] + np.zeros((1, 3), dtype=np.float32)

    encode_query = encode_document


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEmbedder:
    one = FakeEmbedder()
    monkeypatch.setattr(LazyEmbedder, "get", lambda self, *key: one)
    return one


TEXT_SETTINGS = {
    "model": "some/model",
    "prefix": "find: ",
    "suffix": "!",
    "batch_size": 7,
    "progress_bar": True,
    "reason": False,
    "max_reasoning_tokens": 0,
    "normalize_embeddings": True,
}
DOCUMENT_SETTINGS = {
    "model": "some/model",
    "prefix": "page: ",
    "suffix": ".",
    "batch_size": 7,
    "progress_bar": False,
    "meta_fields_to_embed": ["title"],
    "embedding_separator": " | ",
    "normalize_embeddings": True,
}
COMPONENTS: list[tuple[Any, dict[str, Any], str]] = [
    (SearchR3TextEmbedder, TEXT_SETTINGS, f"{MODULE}.text_embedder.SearchR3TextEmbedder"),
    (SearchR3DocumentEmbedder, DOCUMENT_SETTINGS, f"{MODULE}.document_embedder.SearchR3DocumentEmbedder"),
]


@pytest.mark.parametrize(("kind", "settings", "name"), COMPONENTS)
@pytest.mark.parametrize("device", [None, CPU])
def test_to_dict_and_back(kind: Any, settings: dict[str, Any], name: str, device: ComponentDevice | None) -> None:
    component = kind(device=device, **settings)
    data = component.to_dict()
    assert data == {"type": name, "init_parameters": {**settings, "device": device.to_dict() if device else None}}
    again = kind.from_dict(copy.deepcopy(data))
    assert type(again) is kind and again.to_dict() == data and again.device == device
    default = kind()
    assert kind.from_dict(default.to_dict()).to_dict() == default.to_dict()


def test_pipelines_are_written_and_read() -> None:
    pipeline = Pipeline()
    pipeline.add_component("documents", SearchR3DocumentEmbedder(**DOCUMENT_SETTINGS))
    pipeline.add_component("query", SearchR3TextEmbedder(device=CPU, **TEXT_SETTINGS))
    again = Pipeline.loads(pipeline.dumps())
    assert again.to_dict() == pipeline.to_dict()


def test_nothing_loads_before_warm_up(loaded: list[Any]) -> None:
    for kind in (SearchR3TextEmbedder, SearchR3DocumentEmbedder):
        component = kind(model="some/model", device=CPU)
        copy.deepcopy(component)
        assert loaded == []
        component.warm_up()
        asyncio.run(component.warm_up_async())
        assert loaded == [("some/model", "cpu", None)] * 2
        loaded.clear()


def test_what_documents_are_embedded_from(fake: FakeEmbedder) -> None:
    embedder = SearchR3DocumentEmbedder(**DOCUMENT_SETTINGS)
    documents = [
        Document(content="body", meta={"title": "head", "page": 3}),
        Document(content="bare", meta={"title": None}),
        Document(content=None, meta={"title": "no body"}),
    ]
    before = copy.deepcopy(documents)
    found = embedder.run(documents)["documents"]
    [(texts, options)] = fake.calls
    assert texts == ["page: head | body.", "page: bare.", "page: no body | ."]
    assert options == {"batch_size": 7, "show_progress_bar": False, "normalize_embeddings": True}
    assert [one.embedding for one in found] == [[0.0] * 3, [1.0] * 3, [2.0] * 3]
    assert documents == before and [one.id for one in found] == [one.id for one in documents]


def test_what_queries_are_embedded_from(fake: FakeEmbedder) -> None:
    embedder = SearchR3TextEmbedder(**TEXT_SETTINGS)
    assert embedder.run("rivers") == {"embedding": [0.0] * 3}
    embedder.run("rivers", reasoning="water")
    (texts, plain), (_, given) = fake.calls
    assert texts == ["find: rivers!"]
    assert plain["reason"] is False and plain["max_reasoning_tokens"] == 0 and plain["batch_size"] == 7
    assert given == {**plain, "reason": True, "reasoning": ["water"]}


@pytest.mark.parametrize(
    ("kind", "options", "error", "named"),
    [
        (SearchR3TextEmbedder, {"batch_size": 0}, ValueError, "batch_size must be a positive integer, got 0"),
        (SearchR3DocumentEmbedder, {"batch_size": True}, ValueError, "batch_size"),
        (SearchR3TextEmbedder, {"max_reasoning_tokens": -1}, ValueError, "max_reasoning_tokens"),
        (SearchR3TextEmbedder, {"model": None}, TypeError, "model must be a str, got None"),
        (SearchR3DocumentEmbedder, {"prefix": 3}, TypeError, "prefix must be a str, got 3"),
        (SearchR3DocumentEmbedder, {"meta_fields_to_embed": "title"}, TypeError, "list of str, got the str 'title'"),
    ],
)
def test_bad_settings_are_named(kind: Any, options: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        kind(**options)


@pytest.mark.parametrize("bad", ["a text", [TEXTS[0]], [Document(content="a"), "b"], None])
async def test_documents_must_be_documents(bad: Any) -> None:
    embedder = SearchR3DocumentEmbedder()
    for run in (embedder.run, embedder.run_async):
        with pytest.raises(TypeError, match="list of Documents"):
            result = run(bad)
            await result  # type: ignore[misc]
    text_embedder = SearchR3TextEmbedder()
    with pytest.raises(TypeError, match="expects a str"):
        text_embedder._framed([Document(content="a")])


def test_a_pipeline_finds_what_the_question_needs(loaded: list[Any], core: ReasoningEmbedder) -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing = Pipeline()
    indexing.add_component("embedder", SearchR3DocumentEmbedder(device=CPU, progress_bar=False))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder", "writer")
    indexing.run({"embedder": {"documents": [Document(content=text) for text in TEXTS]}})
    stored = {one.content: one.embedding for one in store.filter_documents()}
    np.testing.assert_allclose([stored[text] for text in TEXTS], core.encode_document(TEXTS), atol=1e-5)

    searching = Pipeline()
    searching.add_component("embedder", SearchR3TextEmbedder(device=CPU))
    searching.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    searching.connect("embedder.embedding", "retriever.query_embedding")
    for more in ({}, {"reasoning": "the csv module reads exports"}):
        [hit] = searching.run({"embedder": {"text": QUESTION, **more}})["retriever"]["documents"]
        assert hit.content == TEXTS[0]
        cosine = np.dot(core.encode_query(QUESTION, **more), core.encode_document(TEXTS[0]))
        assert hit.score == pytest.approx((cosine + 1) / 2, abs=1e-4) or hit.score == pytest.approx(cosine, abs=1e-4)


async def test_it_runs_asynchronously(loaded: list[Any], core: ReasoningEmbedder) -> None:
    queries = SearchR3TextEmbedder(device=CPU)
    found = await asyncio.gather(*(queries.run_async(text) for text in TEXTS))
    np.testing.assert_allclose([one["embedding"] for one in found], core.encode_query(TEXTS), atol=1e-5)
    documents = [Document(content=text) for text in TEXTS]
    embedded = (await SearchR3DocumentEmbedder(progress_bar=False).run_async(documents))["documents"]
    np.testing.assert_allclose([one.embedding for one in embedded], core.encode_document(TEXTS), atol=1e-5)
    assert (await SearchR3DocumentEmbedder(progress_bar=False).run_async([]))["documents"] == []
