"""Scores into rankings, rankings into nDCG@10 and recall@100: trec_eval's metrics, through pytrec_eval."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from training.data.beir import BeirData

NDCG, RECALL = "ndcg@10", "recall@100"
# trec_eval's names for the two; documents below the deepest cut-off never count.
TREC_MEASURES = {NDCG: "ndcg_cut_10", RECALL: "recall_100"}
DEPTH = 100


def dense_rows(queries: np.ndarray, documents: np.ndarray, chunk: int = 64) -> Iterator[np.ndarray]:
    """Yields the inner products (documents,) of each query; (q, d) x (n, d), in chunks that fit into memory."""
    for start in range(0, len(queries), chunk):
        yield from queries[start : start + chunk] @ documents.T


def rank(data: BeirData, rows: Iterable[np.ndarray], only_positive: bool = False) -> dict[str, dict[str, float]]:
    """The best documents of every query, in the form that pytrec_eval takes.

    Ties are broken as trec_eval breaks them, by document id in descending order, so the cut at ``DEPTH`` agrees.
    A query that is itself in the corpus (same id and same text, as in ArguAna and Quora) does not find itself; BEIR
    goes by the id alone, which here would also drop documents that only happen to carry the number of a query.

    Args:
        data: The set.
        rows: Scores of all documents, one array per query in the order of ``data.queries``.
        only_positive: Leave out documents with a score of 0 or less (BM25: no word in common).
    """
    document_ids = list(data.documents)
    order = np.array(sorted(range(len(document_ids)), key=document_ids.__getitem__, reverse=True))
    run: dict[str, dict[str, float]] = {}
    for (query_id, text), row in zip(data.queries.items(), rows, strict=True):
        scores = row[order]
        best = order[np.argsort(-scores, kind="stable")[: DEPTH + 1]]
        hits = {document_ids[i]: float(row[i]) for i in best if not only_positive or row[i] > 0}
        if query_id in hits and _is_query_itself(data.documents[query_id], text):
            del hits[query_id]
        run[query_id] = dict(list(hits.items())[:DEPTH])
    return run


def _is_query_itself(document: str, query: str) -> bool:
    return " ".join(document.split()).endswith(" ".join(query.split()))


def score(data: BeirData, run: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """nDCG@10 and recall@100 of every query, from trec_eval."""
    import pytrec_eval

    evaluator = pytrec_eval.RelevanceEvaluator(data.qrels, {"ndcg_cut.10", "recall.100"})
    measured = evaluator.evaluate(run)
    # trec_eval leaves out a query for which nothing was found; its score is 0.
    return {
        query: {metric: measured.get(query, {}).get(name, 0.0) for metric, name in TREC_MEASURES.items()}
        for query in data.queries
    }
