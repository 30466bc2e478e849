"""What BaseEmbedding promises, and what is special here: the two sides, batches, copies, events, stores, bad input."""

from __future__ import annotations

import argparse
import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import faiss
import llama_index.core
import numpy as np
import pytest
from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import MetadataMode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.embeddings.searchr3 import SearchR3Embedding
from llama_index.vector_stores.faiss import FaissMapVectorStore, FaissVectorStore

from searchr3_embed import ReasoningEmbedder

TEXTS = [
    "The csv module reads rows of comma-separated text.",
    "Glaciers are rivers of ice.",
    "Bread needs flour,\nwater and\ttime.",
]
QUESTION = "load a spreadsheet export"
DOCUMENTS = [Document(text=text, id_=str(number)) for number, text in enumerate(TEXTS)]


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


def test_copies_keep_the_settings(embedding: SearchR3Embedding) -> None:
    mine = SearchR3Embedding(device="cpu", embed_batch_size=7, max_reasoning_tokens=3, reason_queries=False)
    expected = mine.get_query_embedding(QUESTION)
    pickled = pickle.dumps(mine)
    assert len(pickled) < 10_000  # the settings, not the weights
    twins = [pickle.loads(pickled), copy.deepcopy(mine), SearchR3Embedding.from_dict(mine.to_dict())]
    twins.append(SearchR3Embedding.from_json(mine.to_json()))
    for twin in twins:
        assert twin.to_dict() == mine.to_dict()
        np.testing.assert_allclose(twin.get_query_embedding(QUESTION), expected, atol=1e-6)


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
        watched.get_query_embedding(QUESTION)
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


def test_an_index_is_built_kept_and_asked(
    embedding: SearchR3Embedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "_embed_model", None)
    Settings.embed_model = embedding
    index = VectorStoreIndex.from_documents(DOCUMENTS)
    index.storage_context.persist(tmp_path)
    loaded = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)))
    for one in (index, loaded):
        assert best(one).text == TEXTS[0]
    loaded.delete_ref_doc("0")
    assert best(loaded).text != TEXTS[0]


def test_a_faiss_index_is_built_kept_and_asked(embedding: SearchR3Embedding, tmp_path: Path) -> None:
    store = FaissVectorStore(faiss_index=faiss.IndexFlatIP(384))
    storage = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex.from_documents(DOCUMENTS, storage_context=storage, embed_model=embedding)
    index.storage_context.persist(tmp_path)
    storage = StorageContext.from_defaults(
        vector_store=FaissVectorStore.from_persist_dir(str(tmp_path)), persist_dir=str(tmp_path)
    )
    loaded = load_index_from_storage(storage, embed_model=copy.deepcopy(embedding))
    cosine = np.dot(embedding.get_query_embedding(QUESTION), embedding.get_text_embedding(TEXTS[0]))
    for one in (index, loaded):
        assert best(one).text == TEXTS[0] and best(one).score == pytest.approx(cosine, abs=1e-5)
    with pytest.raises(NotImplementedError, match="Delete not yet implemented for Faiss"):
        loaded.delete_ref_doc("0")


def test_a_faiss_index_that_can_delete(embedding: SearchR3Embedding) -> None:
    store = FaissMapVectorStore(faiss_index=faiss.IndexIDMap2(faiss.IndexFlatIP(384)))
    storage = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex.from_documents(DOCUMENTS, storage_context=storage, embed_model=embedding)
    assert best(index).text == TEXTS[0]
    index.delete_nodes([best(index).node_id])  # this store knows nodes, not the documents they come from
    assert best(index).text != TEXTS[0] and store.client.ntotal == 2


def best(index: VectorStoreIndex) -> Any:
    return index.as_retriever(similarity_top_k=1).retrieve(QUESTION)[0]


async def test_an_index_is_asked_asynchronously(embedding: SearchR3Embedding) -> None:
    index = VectorStoreIndex.from_documents(DOCUMENTS, embed_model=embedding)
    hits = await index.as_retriever(similarity_top_k=1).aretrieve(QUESTION)
    assert hits[0].text == TEXTS[0]


@pytest.mark.parametrize("workers", [None, 2])
def test_a_pipeline_splits_and_embeds_real_text(
    workers: int | None, embedding: SearchR3Embedding, core: ReasoningEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without it the splitter's tokenizer, unpickled in a worker, looks for its vocabulary on the network.
    cache = Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(chunk_size=60, chunk_overlap=0), embedding])
    documents = [Document(text=inspect.getdoc(thing), id_=thing.__name__) for thing in (argparse, Path, inspect, copy)]
    nodes = pipeline.run(documents=documents, num_workers=workers)
    assert len(nodes) > 8 and {node.ref_doc_id for node in nodes} == {document.id_ for document in documents}
    contents = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
    np.testing.assert_allclose([node.embedding for node in nodes], core.encode_document(contents), atol=1e-5)


def test_the_cache_of_a_pipeline_holds_documents_only(embedding: SearchR3Embedding) -> None:
    pipeline = IngestionPipeline(transformations=[embedding])
    text = "Is cystic fibrosis inherited?"  # of a kind that the thinker was trained on, so it moves the vector
    first, again = (pipeline.run(documents=[Document(text=text, id_="0")])[0].embedding for _ in range(2))
    assert first == again and len(pipeline.cache.cache.get_all(pipeline.cache.collection)) == 1
    assert np.abs(np.subtract(embedding.get_query_embedding(text), first)).max() > 1e-3


async def test_asynchronous_batches_may_run_in_workers(core: ReasoningEmbedder) -> None:
    """The base class cuts a call into batches of embed_batch_size, and num_workers bounds how many wait at once."""
    texts = [f"{text} {number}" for number in range(4) for text in TEXTS]
    for workers in (None, 2):
        embedding = SearchR3Embedding(device="cpu", embed_batch_size=5, num_workers=workers)
        np.testing.assert_allclose(
            await embedding.aget_text_embedding_batch(texts), core.encode_document(texts), atol=1e-5
        )


async def test_a_bundle_carries_an_agents_words_as_its_embedding(
    embedding: SearchR3Embedding, core: ReasoningEmbedder
) -> None:
    text, thought = "Is cystic fibrosis inherited?", "Both parents carry the changed gene."
    expected = core.encode_query(text, reasoning=thought)
    for bundle in (
        embedding.query_bundle(text, reasoning=thought),
        await embedding.aquery_bundle(text, reasoning=thought),
        SearchR3Embedding(device="cpu", reason_queries=False).query_bundle(text, reasoning=thought),
    ):
        assert bundle.query_str == text and type(bundle.embedding[0]) is float
        np.testing.assert_allclose(bundle.embedding, expected, atol=1e-5)
    np.testing.assert_allclose(embedding.query_bundle(text).embedding, core.encode_query(text), atol=1e-5)
    # A retriever takes the embedding as it is: scores are those of the words.
    index = VectorStoreIndex.from_documents(DOCUMENTS, embed_model=embedding)
    bundle = embedding.query_bundle(QUESTION, reasoning="the csv module reads exports")
    hit = index.as_retriever(similarity_top_k=1).retrieve(bundle)[0]
    assert hit.text == TEXTS[0]
    assert hit.score == pytest.approx(np.dot(bundle.embedding, core.encode_document(TEXTS[0])), abs=1e-5)
