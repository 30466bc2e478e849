"""Rankings and their scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.data.beir import BeirData
from training.evaluate.metrics import DEPTH, NDCG, RECALL, rank, score


def test_metrics_equal_hand_computed_values() -> None:
    data = BeirData("hand", dict.fromkeys("abcd", ""), {"q": ""}, {"q": {"a": 1, "c": 1, "z": 1}})
    measured = score(data, {"q": {"a": 0.9, "b": 0.8, "c": 0.7}})["q"]
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert measured[NDCG] == pytest.approx((1 + 1 / math.log2(4)) / ideal, abs=1e-6)
    assert measured[RECALL] == pytest.approx(2 / 3, abs=1e-6)
    assert score(data, {"q": {}})["q"] == {NDCG: 0.0, RECALL: 0.0}


def test_ties_break_as_in_trec_eval() -> None:
    documents = {f"d{i:03}": "" for i in range(150)}
    data = BeirData("ties", documents, {"q": "text"}, {"q": {"d149": 1}})
    run = rank(data, [np.ones(150, dtype=np.float32)])
    assert list(run["q"]) == sorted(documents, reverse=True)[:DEPTH]
    assert score(data, run)["q"][NDCG] == pytest.approx(1.0)


def test_query_in_the_corpus_does_not_find_itself() -> None:
    documents = {"1": "Title the same words", "2": "other words"}
    data = BeirData("self", documents, {"1": "the same  words", "2": "a question"}, {"1": {"2": 1}, "2": {"1": 1}})
    run = rank(data, [np.array([0.9, 0.5]), np.array([0.1, 0.8])])
    assert list(run["1"]) == ["2"]
    assert list(run["2"]) == ["2", "1"]  # only the number is the same


def test_a_judged_document_that_the_corpus_lacks_counts_as_not_found() -> None:
    data = BeirData("lost", {"a": ""}, {"q": ""}, {"q": {"a": 1, "gone": 1}})
    measured = score(data, {"q": {"a": 0.9}})["q"]
    assert measured[NDCG] == pytest.approx(1 / (1 + 1 / math.log2(3)), abs=1e-6) and measured[RECALL] == 0.5
