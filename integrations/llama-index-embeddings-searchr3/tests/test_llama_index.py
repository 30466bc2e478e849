"""What BaseEmbedding promises, and what is special here: the two sides, batches, copies, events, stores, bad input."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.embeddings.searchr3 import SearchR3Embedding

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoints import CheckpointError

TEXTS = [
    "The csv module reads rows of comma-separated text.",
    "Glaciers are rivers of ice.",
    "Bread needs flour,\nwater and\ttime.",
]
SUBJECTS = ["ice", "bread", "files", "rivers", "mountains", "baking", "spreadsheets"]
QUESTIONS = [f"what should i know about {subject}?" for subject in SUBJECTS]


@pytest.fixture(scope="module")
def embedding() -> SearchR3Embedding:
    return SearchR3Embedding(device="cpu")


@pytest.fixture(scope="module")
def core() -> ReasoningEmbedder:
    return ReasoningEmbedder("searchr3", device="cpu")


async def test_same_vectors_through_every_door(embedding: SearchR3Embedding, core: ReasoningEmbedder) -> None:
    documents, queries = core.encode_document(TEXTS), core.encode_query(TEXTS)
    for got in (
        embedding.get_text_embedding_batch(TEXTS),
        [embedding.get_text_embedding(text) for text in TEXTS],
        await embedding.aget_text_embedding_batch(TEXTS),
        [await embedding.aget_text_embedding(text) for text in TEXTS],
        [node.embedding for node in embedding([Document(text=text) for text in TEXTS])],
    ):
        assert isinstance(got[0], list) and type(got[0][0]) is float
        np.testing.assert_allclose(got, documents, atol=1e-5)
    np.testing.assert_allclose([embedding.get_query_embedding(text) for text in TEXTS], queries, atol=1e-5)
    np.testing.assert_allclose([await embedding.aget_query_embedding(text) for text in TEXTS], queries, atol=1e-5)
    direct = SearchR3Embedding(device="cpu", reason_queries=False)
    np.testing.assert_allclose(direct.get_query_embedding(TEXTS[0]), documents[0], atol=1e-5)
    np.testing.assert_allclose(embedding.get_agg_embedding_from_queries(TEXTS), np.mean(queries, axis=0), atol=1e-5)


async def test_concurrent_calls_run_as_one_batch(embedding: SearchR3Embedding) -> None:
    questions = [f"{question} ({n})" for n in range(10) for question in QUESTIONS][:64]
    began = time.perf_counter()
    one_by_one = [await embedding.aget_query_embedding(question) for question in questions]
    sequential = time.perf_counter() - began
    began = time.perf_counter()
    together = await asyncio.gather(*(embedding.aget_query_embedding(question) for question in questions))
    concurrent = time.perf_counter() - began
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    assert concurrent < sequential / 2


async def test_a_bad_or_cancelled_call_harms_no_other(embedding: SearchR3Embedding) -> None:
    calls: list[Any] = [asyncio.create_task(embedding.aget_query_embedding(question)) for question in QUESTIONS]
    bad = asyncio.create_task(embedding.aget_query_embedding(5))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    calls[3].cancel()
    results = await asyncio.gather(*calls, bad, return_exceptions=True)
    assert isinstance(results[3], asyncio.CancelledError)
    assert isinstance(results[-1], TypeError)
    for number in (0, 1, 2, 4, 5, 6):
        np.testing.assert_allclose(results[number], embedding.get_query_embedding(QUESTIONS[number]), atol=1e-5)


def test_copies_keep_the_settings(embedding: SearchR3Embedding) -> None:
    mine = SearchR3Embedding(device="cpu", embed_batch_size=7, max_reasoning_tokens=3, reason_queries=False)
    expected = mine.get_query_embedding(QUESTIONS[0])
    pickled = pickle.dumps(mine)
    assert len(pickled) < 10_000  # the settings, not the weights
    twins = [pickle.loads(pickled), copy.deepcopy(mine), SearchR3Embedding.from_dict(mine.to_dict())]
    twins.append(SearchR3Embedding.from_json(mine.to_json()))
    for twin in twins:
        assert twin.to_dict() == mine.to_dict()
        np.testing.assert_allclose(twin.get_query_embedding(QUESTIONS[0]), expected, atol=1e-6)


def test_events_fire(core: ReasoningEmbedder) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    names: list[str] = []

    class Notes(BaseEventHandler):
        def handle(self, event: Any, **kwargs: Any) -> None:
            names.append(event.class_name())

    dispatcher = get_dispatcher()
    handler = Notes()
    dispatcher.add_event_handler(handler)
    try:
        watched = SearchR3Embedding(device="cpu", callback_manager=CallbackManager([debug]))
        watched.get_text_embedding_batch(TEXTS)
        watched.get_query_embedding(QUESTIONS[0])
    finally:
        dispatcher.event_handlers.remove(handler)
    pairs = debug.get_event_pairs(CBEventType.EMBEDDING)
    assert [len(end.payload[EventPayload.CHUNKS]) for _, end in pairs] == [3, 1]
    assert names == ["EmbeddingStartEvent", "EmbeddingEndEvent"] * 2


def test_a_cache_of_bare_texts_is_refused(embedding: SearchR3Embedding) -> None:
    with pytest.raises(ValueError, match="query from a document"):
        SearchR3Embedding(embeddings_cache=SimpleKVStore())
    with pytest.raises(ValueError, match="query from a document"):
        embedding.embeddings_cache = SimpleKVStore()
    assert embedding.embeddings_cache is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"modle_name": "x"}, "modle_name"),
        ({"embed_batch_size": 0}, "embed_batch_size"),
        ({"max_reasoning_tokens": -1}, "max_reasoning_tokens"),
        ({"model_name": None}, "model_name"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SearchR3Embedding(**fields)


def test_wrong_inputs_and_missing_models(embedding: SearchR3Embedding) -> None:
    lazy = SearchR3Embedding(model_name="no/such/folder")
    with pytest.raises(CheckpointError, match="no/such/folder"):
        lazy.get_query_embedding("hello")
    with pytest.raises(TypeError, match="None"):
        embedding.get_query_embedding(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="None"):
        embedding.get_text_embedding_batch(["a", None])  # type: ignore[list-item]
    assert embedding.get_text_embedding_batch([]) == []


def test_an_index_is_built_kept_and_asked(
    embedding: SearchR3Embedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "_embed_model", None)
    Settings.embed_model = embedding
    index = VectorStoreIndex.from_documents([Document(text=text, id_=str(i)) for i, text in enumerate(TEXTS)])
    index.storage_context.persist(tmp_path)
    loaded = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)))
    for one in (index, loaded):
        hits = one.as_retriever(similarity_top_k=1).retrieve("load a spreadsheet export")
        assert hits[0].text == TEXTS[0]
    loaded.delete_ref_doc("0")
    assert loaded.as_retriever(similarity_top_k=1).retrieve("load a spreadsheet export")[0].text != TEXTS[0]


def test_a_pipeline_splits_and_embeds(embedding: SearchR3Embedding, core: ReasoningEmbedder) -> None:
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(chunk_size=60, chunk_overlap=0), embedding])
    readme = Path(__file__).parents[1] / "README.md"
    nodes = pipeline.run(documents=[Document(text=readme.read_text(encoding="utf-8"))])
    assert len(nodes) > 5
    contents = [node.get_content(metadata_mode="embed") for node in nodes]
    np.testing.assert_allclose([node.embedding for node in nodes], core.encode_document(contents), atol=1e-5)
