"""What LangChain's suites do not ask: the two sides, async batches, copies, stores, chains and bad input."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from typing import Any

import numpy as np
import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_searchr3 import SearchR3Embeddings
from pydantic import ValidationError

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


def test_nothing_loads_before_it_is_needed() -> None:
    lazy = SearchR3Embeddings(model="no/such/folder")
    with pytest.raises(CheckpointError, match="no/such/folder"):
        lazy.embed_query("hello")


async def test_concurrent_calls_run_as_one_batch(embeddings: SearchR3Embeddings) -> None:
    questions = [f"{question} ({n})" for n in range(10) for question in QUESTIONS][:64]
    began = time.perf_counter()
    one_by_one = [await embeddings.aembed_query(question) for question in questions]
    sequential = time.perf_counter() - began
    began = time.perf_counter()
    together = await asyncio.gather(*(embeddings.aembed_query(question) for question in questions))
    concurrent = time.perf_counter() - began
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    assert concurrent < sequential / 2


async def test_a_bad_or_cancelled_call_harms_no_other(embeddings: SearchR3Embeddings) -> None:
    calls: list[Any] = [asyncio.create_task(embeddings.aembed_query(question)) for question in QUESTIONS]
    bad = asyncio.create_task(embeddings.aembed_query(5))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    calls[3].cancel()
    results = await asyncio.gather(*calls, bad, return_exceptions=True)
    assert isinstance(results[3], asyncio.CancelledError)
    assert isinstance(results[-1], TypeError)
    for number in (0, 1, 2, 4, 5, 6):
        np.testing.assert_allclose(results[number], embeddings.embed_query(QUESTIONS[number]), atol=1e-5)


def test_a_new_event_loop_works_after_the_old_one_closed(embeddings: SearchR3Embeddings) -> None:
    first, second = (asyncio.run(embeddings.aembed_query(QUESTIONS[0])) for _ in range(2))
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_copies_and_pickles(embeddings: SearchR3Embeddings) -> None:
    expected = embeddings.embed_query(QUESTIONS[0])
    pickled = pickle.dumps(embeddings)
    assert len(pickled) < 10_000  # the settings, not the weights
    for twin in (pickle.loads(pickled), copy.deepcopy(embeddings), embeddings.model_copy()):
        assert twin == embeddings or twin.model_dump() == embeddings.model_dump()
        np.testing.assert_allclose(twin.embed_query(QUESTIONS[0]), expected, atol=1e-6)


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


def test_inputs_that_are_no_texts(embeddings: SearchR3Embeddings) -> None:
    with pytest.raises(TypeError, match="list of str.*hello"):
        embeddings.embed_documents("hello")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="None"):
        embeddings.embed_documents(["a", None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="query must be a str"):
        embeddings.embed_query(["a"])  # type: ignore[arg-type]


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
    assert chain.invoke("load a spreadsheet export") == "with the csv module"
    assert TEXTS[0] in seen[0]
