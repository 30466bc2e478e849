"""Where a SentenceTransformer is expected: the library's own tools, mteb, and other frameworks' stock classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import mteb
import numpy as np
import pytest
from langchain_huggingface import HuggingFaceEmbeddings
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from mteb.abstasks.retrieval import AbsTaskRetrieval
from sentence_transformers import SentenceTransformer, util
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util.quantization import quantize_embeddings, semantic_search_faiss

from searchr3_embed import ReasoningEmbedder

CORPUS = {
    "csv": "The csv module reads and writes rows of comma-separated text.",
    "glacier": "Glaciers are slow rivers of ice that carve valleys.",
    "bread": "Bread needs flour, water, yeast and time to rise.",
    "vaccine": "A vaccine trains the immune system with a harmless part of a germ.",
    "interest": "Compound interest is interest on interest: savings grow faster every year.",
    "moss": "Moss grows where it is damp and shady, on any side of a tree.",
}
QUERIES = {
    "q-csv": "load a spreadsheet export",
    "q-glacier": "how does ice shape mountains?",
    "q-bread": "what do i need to bake a loaf?",
    "q-vaccine": "how am i protected against measles?",
    "q-interest": "how does money in the bank multiply?",
    "q-moss": "which plants like the dark?",
}
RELEVANT = {query: {query.removeprefix("q-"): 1} for query in QUERIES}


@pytest.fixture(scope="module")
def embedder() -> ReasoningEmbedder:
    return ReasoningEmbedder("searchr3", device="cpu")


@pytest.fixture(scope="module")
def folder(embedder: ReasoningEmbedder, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("saved"))
    embedder.save_pretrained(path)
    return path


@pytest.fixture
def sides(embedder: ReasoningEmbedder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Notes, for each batch that the model embeds, whether it thought and how many texts there were."""
    seen: list[tuple[bool, int]] = []
    plain = embedder._inference

    def noted(inputs: list[str], **options: Any) -> Any:
        seen.append((bool(options["reason"]), len(inputs)))
        return plain(inputs, **options)

    monkeypatch.setattr(embedder, "_inference", noted)
    return seen


def ranked(embedder: ReasoningEmbedder) -> np.ndarray:
    """Scores of all documents (columns) for all queries (rows), by hand."""
    return embedder.encode_query(list(QUERIES.values())) @ embedder.encode_document(list(CORPUS.values())).T


def test_information_retrieval_evaluator(embedder: ReasoningEmbedder, sides: list[tuple[bool, int]]) -> None:
    relevant = {query: set(documents) for query, documents in RELEVANT.items()}
    results = InformationRetrievalEvaluator(QUERIES, CORPUS, relevant, write_csv=False)(embedder)
    assert sides == [(True, 6), (False, 6)]  # queries thought, documents did not
    first = (ranked(embedder).argmax(axis=1) == np.arange(6)).mean()
    assert results["cosine_accuracy@1"] == pytest.approx(first)
    assert results["cosine_ndcg@10"] > 0.8


def test_semantic_search(embedder: ReasoningEmbedder) -> None:
    queries = embedder.encode_query(list(QUERIES.values()), convert_to_tensor=True)
    documents = embedder.encode_document(list(CORPUS.values()), convert_to_tensor=True)
    scores = ranked(embedder)
    for row, hits in enumerate(util.semantic_search(queries, documents, top_k=3)):
        assert [hit["corpus_id"] for hit in hits] == list(scores[row].argsort()[::-1][:3])
        np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(scores[row])[::-1][:3], atol=1e-5)


def test_paraphrase_mining(embedder: ReasoningEmbedder) -> None:
    texts = [*CORPUS.values(), "Savings grow faster every year through compound interest, interest on interest."]
    score, first, second = util.paraphrase_mining(embedder, texts)[0]
    assert {first, second} == {4, 6}
    vectors = embedder.encode([texts[4], texts[6]])
    assert score == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)


@pytest.mark.slow
def test_a_pool_of_two_processes(embedder: ReasoningEmbedder) -> None:
    texts = [*CORPUS.values(), *QUERIES.values()] * 3
    pool = embedder.start_multi_process_pool(["cpu", "cpu"])
    try:
        queries = embedder.encode_query(texts, pool=pool, chunk_size=8)
        documents = embedder.encode_document(texts, pool=pool, chunk_size=8)
    finally:
        embedder.stop_multi_process_pool(pool)
    np.testing.assert_allclose(queries, embedder.encode_query(texts), atol=1e-5)
    np.testing.assert_allclose(documents, embedder.encode_document(texts), atol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_quantize_embeddings(embedder: ReasoningEmbedder, precision: str) -> None:
    documents = embedder.encode_document(list(CORPUS.values()))
    queries = embedder.encode_query(list(QUERIES.values()))
    small = quantize_embeddings(documents, precision=precision, calibration_embeddings=documents)
    assert small.dtype.itemsize == 1 and small.shape == (6, 48 if "binary" in precision else 384)
    if precision not in ("uint8", "ubinary"):
        return
    found, _ = semantic_search_faiss(
        queries,
        corpus_embeddings=small,
        corpus_precision=precision,
        top_k=1,
        calibration_embeddings=documents,
        rescore=False,
        exact=True,
    )
    assert sum(hits[0]["corpus_id"] == row for row, hits in enumerate(found)) >= 4


class LocalRetrieval(AbsTaskRetrieval):
    """The texts above as an mteb task, without any download."""

    metadata = mteb.TaskMetadata(
        name="LocalRetrieval",
        description="Six documents and six questions.",
        dataset={"path": "local", "revision": "1"},
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        rows = [{"id": key, "title": "", "text": text} for key, text in CORPUS.items()]
        questions = [{"id": key, "text": text} for key, text in QUERIES.items()]
        split = {
            "corpus": datasets.Dataset.from_list(rows),
            "queries": datasets.Dataset.from_list(questions),
            "relevant_docs": RELEVANT,
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def test_mteb(embedder: ReasoningEmbedder, sides: list[tuple[bool, int]]) -> None:
    result = mteb.evaluate(embedder, LocalRetrieval(), cache=None, show_progress_bar=False, co2_tracker=False)
    scores = result.task_results[0].scores["test"][0]
    assert sorted(sides) == [(False, 6), (True, 6)]
    positions = (ranked(embedder) > np.diag(ranked(embedder))[:, None]).sum(axis=1)
    assert scores["ndcg_at_10"] == pytest.approx((1 / np.log2(positions + 2)).mean(), abs=1e-4)


def test_stock_langchain_takes_a_saved_folder(embedder: ReasoningEmbedder, folder: str) -> None:
    stock = HuggingFaceEmbeddings(model_name=folder, model_kwargs={"device": "cpu"})
    texts = list(CORPUS.values())
    np.testing.assert_allclose(stock.embed_documents(texts), embedder.encode_document(texts), atol=1e-5)
    direct = embedder.encode_query(texts[0], reason=False)
    np.testing.assert_allclose(stock.embed_query(texts[0]), direct, atol=1e-5)


def test_stock_llama_index_takes_a_saved_folder(embedder: ReasoningEmbedder, folder: str) -> None:
    stock = HuggingFaceEmbedding(model_name=folder, device="cpu")
    texts = list(CORPUS.values())
    np.testing.assert_allclose(stock.get_text_embedding_batch(texts), embedder.encode_document(texts), atol=1e-5)
    direct = embedder.encode_query(texts[0], reason=False)
    np.testing.assert_allclose(stock.get_query_embedding(texts[0]), direct, atol=1e-5)


def test_the_stock_class_needs_no_remote_code(folder: str) -> None:
    assert not list(Path(folder).rglob("*.py"))
    assert type(SentenceTransformer(folder, device="cpu", trust_remote_code=False)) is SentenceTransformer
