"""One model on one set: vectors or BM25 scores, the time they take, the ranking, the scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from training.data.beir import BeirData
from training.evaluate.bm25 import bm25_rows
from training.evaluate.cells import Cell, Settings
from training.evaluate.metrics import TREC_MEASURES, dense_rows, rank, score
from training.evaluate.models import System


def measure_group(
    load: Callable[[], Any],
    systems: list[System],
    data: BeirData,
    settings: Settings,
    batch_size: int,
    progress: bool,
) -> Iterator[Cell]:
    """Measures the rows that share one model, which ``load`` gives, on one set; the documents are encoded once."""
    queries = list(data.queries.values())
    per_document = 1000 / len(data.documents)
    per_query = 1000 / len(queries)
    if systems[0].kind == "bm25":
        rows, document_seconds, query_seconds = bm25_rows(list(data.documents.values()), queries)
        scores = score(data, rank(data, rows, only_positive=True))
        yield _cell(systems[0], data, scores, query_seconds * per_query, document_seconds * per_document)
        return
    model = load()
    documents, document_seconds = encode_documents(model, data, batch_size, progress)
    for system in systems:
        budget = system.budget_in(settings)
        vectors, reasonings, seconds = encode_queries(model, system.mode, queries, budget, batch_size, progress)
        scores = score(data, rank(data, dense_rows(vectors, documents)))
        cell = _cell(system, data, scores, seconds * per_query, document_seconds * per_document)
        if system.mode == "reason":
            cell.reasoning_tokens_per_query = float(np.mean([r.reasoning_tokens for r in reasonings]))
            cell.embed_token_share = float(np.mean([r.finish_reason != "length" for r in reasonings]))
            cell.reasonings = {
                query: {
                    "text": r.text,
                    "reasoning": r.reasoning,
                    "finish_reason": r.finish_reason,
                    "prompt_tokens": r.prompt_tokens,
                    "reasoning_tokens": r.reasoning_tokens,
                }
                for query, r in zip(data.queries, reasonings, strict=True)
            }
        yield cell


def _cell(
    system: System, data: BeirData, scores: dict[str, dict[str, float]], ms_query: float, ms_document: float
) -> Cell:
    means = {metric: float(np.mean([row[metric] for row in scores.values()])) for metric in TREC_MEASURES}
    return Cell(system.label, data.name, len(data.queries), len(data.documents), means, scores, ms_query, ms_document)


def encode_documents(model: Any, data: BeirData, batch_size: int, progress: bool) -> tuple[np.ndarray, float]:
    """Document vectors (n, d) and the seconds they took; equal texts are still encoded one by one, as users do."""
    texts = list(data.documents.values())
    _warm_up(lambda: model.encode_document(texts[:1], show_progress_bar=False))
    started = time.perf_counter()
    vectors = model.encode_document(
        texts, batch_size=batch_size, show_progress_bar=progress, normalize_embeddings=_by_cosine(model)
    )
    return vectors, time.perf_counter() - started


def encode_queries(
    model: Any, mode: str | None, texts: list[str], budget: int | None, batch_size: int, progress: bool
) -> tuple[np.ndarray, list[Any], float]:
    """Query vectors (q, d), the reasonings (empty unless ``mode`` is "reason") and the seconds both took."""
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": progress}
    if mode == "reason":
        options["max_reasoning_tokens"] = budget
        _warm_up(lambda: model.reason(texts[:1], **options | {"show_progress_bar": False}))
        started = time.perf_counter()
        reasonings = model.reason(texts, **options)
        vectors = np.stack([reasoning.embedding for reasoning in reasonings])
        seconds = time.perf_counter() - started
        # As the direct vectors, where an encoder does not bring them to length 1 by itself.
        if _by_cosine(model):
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors, reasonings, seconds
    options["normalize_embeddings"] = _by_cosine(model)
    if mode == "direct":
        options["reason"] = False
    _warm_up(lambda: model.encode_query(texts[:1], **options | {"show_progress_bar": False}))
    started = time.perf_counter()
    vectors = model.encode_query(texts, **options)
    return vectors, [], time.perf_counter() - started


def _warm_up(call: Any) -> None:
    """One untimed call: the first one pays for lazy imports, kernels and memory."""
    call()


def _by_cosine(model: Any) -> bool:
    return str(model.similarity_fn_name) != "dot"
