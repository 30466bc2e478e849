"""What LangChain's suites do not ask: the two sides, copies, stores, caches, chains and bad input."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromadb.api.shared_system_client import SharedSystemClient
from langchain_chroma import Chroma
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_community.vectorstores import FAISS
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_searchr3 import SearchR3Embeddings
from pydantic import ValidationError

from searchr3_embed import ReasoningEmbedder

TEXTS = [
    "The csv module reads rows of comma-separated text.",
    "Glaciers are rivers of ice.",
    "Bread needs flour,\nwater and\ttime.",
]
QUESTION = "load a spreadsheet export"


@pytest.fixture(scope="module")
def embeddings() -> SearchR3Embeddings:
    return SearchR3Embeddings(device="cpu")


@pytest.fixture(scope="module")
def core() -> ReasoningEmbedder:
    return ReasoningEmbedder("searchr3", device="cpu")


def test_same_vectors_as_the_core(embeddings: SearchR3Embeddings, core: ReasoningEmbedder) -> None:
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), core.encode_document(TEXTS), atol=1e-5)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[2]), core.encode_query(TEXTS[2]), atol=1e-5)
    direct = SearchR3Embeddings(device="cpu", reason_queries=False)
    np.testing.assert_allclose(direct.embed_query(TEXTS[0]), core.encode(TEXTS[0]), atol=1e-5)
    assert embeddings.embed_documents([]) == []


def test_copies_and_pickles(embeddings: SearchR3Embeddings) -> None:
    expected = embeddings.embed_query(QUESTION)
    pickled = pickle.dumps(embeddings)
    assert len(pickled) < 10_000  # the settings, not the weights
    for twin in (pickle.loads(pickled), copy.deepcopy(embeddings), embeddings.model_copy()):
        assert twin == embeddings or twin.model_dump() == embeddings.model_dump()
        np.testing.assert_allclose(twin.embed_query(QUESTION), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"modle": "searchr3"}, "modle"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_reasoning_tokens": -1}, "max_reasoning_tokens"),
        ({"model": None}, "model"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        SearchR3Embeddings(**fields)


def test_a_lone_text_is_not_a_list_of_documents(embeddings: SearchR3Embeddings) -> None:
    with pytest.raises(TypeError, match="list of str.*hello"):
        embeddings.embed_documents("hello")  # type: ignore[arg-type]


def test_stores_find_what_the_question_needs(embeddings: SearchR3Embeddings, tmp_path: Path) -> None:
    cosine = float(np.dot(embeddings.embed_query(QUESTION), embeddings.embed_documents(TEXTS)[0]))

    memory = InMemoryVectorStore.from_texts(TEXTS, embeddings)
    memory.dump(str(tmp_path / "memory.json"))
    FAISS.from_texts(TEXTS, embeddings, ids=["0", "1", "2"]).save_local(str(tmp_path / "faiss"))
    Chroma.from_texts(
        TEXTS,
        embeddings,
        ids=["0", "1", "2"],
        persist_directory=str(tmp_path / "chroma"),
        collection_metadata={"hnsw:space": "cosine"},
    )

    # Each is opened again from disk, with an embedder that has not loaded yet.
    other = embeddings.model_copy(deep=True)
    reopened = InMemoryVectorStore.load(str(tmp_path / "memory.json"), other)
    [(hit, score)] = reopened.similarity_search_with_score(QUESTION, k=1)
    assert hit.page_content == TEXTS[0] and score == pytest.approx(cosine, abs=1e-5)

    faiss = FAISS.load_local(str(tmp_path / "faiss"), other, allow_dangerous_deserialization=True)
    [(hit, squared)] = faiss.similarity_search_with_score(QUESTION, k=1)
    assert hit.page_content == TEXTS[0] and squared == pytest.approx(2 - 2 * cosine, abs=1e-5)
    faiss.delete(["0"])
    assert faiss.similarity_search(QUESTION, k=1)[0].page_content != TEXTS[0]

    chroma = reopen_chroma(tmp_path / "chroma", other)
    [(hit, distance)] = chroma.similarity_search_with_score(QUESTION, k=1)
    assert hit.page_content == TEXTS[0] and distance == pytest.approx(1 - cosine, abs=1e-4)
    chroma.delete(["0"])
    chroma.add_texts(["Comma-separated files open in any spreadsheet."], ids=["3"])
    hits = reopen_chroma(tmp_path / "chroma", other).similarity_search(QUESTION, k=3)
    assert {hit.id for hit in hits} == {"1", "2", "3"} and hits[0].id == "3"


def reopen_chroma(folder: Path, embeddings: SearchR3Embeddings) -> Chroma:
    """A new client on the folder; Chroma would hand out the one that it has open in this process."""
    SharedSystemClient.clear_system_cache()
    return Chroma(persist_directory=str(folder), embedding_function=embeddings)


async def test_stores_find_it_asynchronously(embeddings: SearchR3Embeddings) -> None:
    store = await InMemoryVectorStore.afrom_texts(TEXTS, embeddings)
    assert (await store.asimilarity_search(QUESTION, k=1))[0].page_content == TEXTS[0]


def test_a_cache_keeps_the_two_sides_apart(embeddings: SearchR3Embeddings) -> None:
    """Question and document of the same words, in every way in which LangChain caches."""
    text = "Is cystic fibrosis inherited?"  # of a kind that the thinker was trained on, so it moves the vector
    query, document = embeddings.embed_query(text), embeddings.embed_documents([text])[0]
    assert np.abs(np.subtract(query, document)).max() > 1e-3
    documents, queries = InMemoryByteStore(), InMemoryByteStore()
    for query_cache in (False, queries):
        cached = CacheBackedEmbeddings.from_bytes_store(
            embeddings, documents, namespace="searchr3", query_embedding_cache=query_cache, key_encoder="sha256"
        )
        for _ in range(2):  # computed, then read
            np.testing.assert_allclose(cached.embed_documents([text])[0], document, atol=1e-5)
            np.testing.assert_allclose(cached.embed_query(text), query, atol=1e-5)
    assert len(list(documents.yield_keys())) == len(list(queries.yield_keys())) == 1

    # The trap of the README: one store for both has one key for both. A key per side is the way out.
    shared = CacheBackedEmbeddings.from_bytes_store(
        embeddings, documents, namespace="searchr3", query_embedding_cache=True, key_encoder="sha256"
    )
    np.testing.assert_allclose(shared.embed_query(text), document, atol=1e-5)
    split = CacheBackedEmbeddings(
        embeddings, shared.document_embedding_store, query_embedding_store=cached.query_embedding_store
    )
    np.testing.assert_allclose(split.embed_query(text), query, atol=1e-5)


def test_a_chain_finds_what_the_question_needs(embeddings: SearchR3Embeddings) -> None:
    store = InMemoryVectorStore.from_texts(TEXTS, embeddings)
    prompt = ChatPromptTemplate.from_template("Use: {context}\nAnswer: {question}")
    seen: list[str] = []

    def note(value: Any) -> Any:
        seen.append(value.to_string())
        return value

    retriever = store.as_retriever(search_kwargs={"k": 1})
    chain = (
        {"context": retriever | (lambda hits: hits[0].page_content), "question": RunnablePassthrough()}
        | prompt
        | note
        | FakeListChatModel(responses=["with the csv module"])
        | StrOutputParser()
    )
    assert chain.invoke(QUESTION) == "with the csv module"
    assert TEXTS[0] in seen[0]


async def test_an_agents_words_take_the_place_of_written_ones(
    embeddings: SearchR3Embeddings, core: ReasoningEmbedder
) -> None:
    text, thought = "Is cystic fibrosis inherited?", "Both parents carry the changed gene."
    expected = core.encode_query(text, reasoning=thought)
    assert np.abs(expected - core.encode_query(text)).max() > 1e-3
    direct = SearchR3Embeddings(device="cpu", reason_queries=False)
    for one in (embeddings, direct):
        np.testing.assert_allclose(one.embed_query(text, reasoning=thought), expected, atol=1e-5)
    np.testing.assert_allclose(await embeddings.aembed_query(text, reasoning=thought), expected, atol=1e-5)
    trace = core.reason(text)
    np.testing.assert_allclose(embeddings.embed_query(text, reasoning=trace), trace.embedding, atol=1e-5)
    more = core.encode_query(text, reasoning=thought, continue_reasoning=True)
    np.testing.assert_allclose(
        embeddings.embed_query(text, reasoning=thought, continue_reasoning=True), more, atol=1e-5
    )
    store = InMemoryVectorStore.from_texts(TEXTS, embeddings)
    query = embeddings.embed_query(QUESTION, reasoning="the csv module reads exports")
    assert store.similarity_search_by_vector(query, k=1)[0].page_content == TEXTS[0]
    with pytest.raises(TypeError, match="reasoning.*a str, a Reasoning"):
        embeddings.embed_query(text, reasoning=7)  # type: ignore[arg-type]
