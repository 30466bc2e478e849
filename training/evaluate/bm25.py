"""The lexical yardstick: BM25 with Lucene's tokens and the usual parameters."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

BM25_K1, BM25_B = 0.9, 0.4
# Runs of letters and digits: unlike the library's default it splits identifiers of code at underscores (CoSQA: +0.04
# nDCG@10) and keeps single characters ("vitamin D"), as Lucene does.
BM25_TOKEN = r"(?u)[^\W_]+"


def bm25_rows(documents: Sequence[str], queries: Sequence[str]) -> tuple[list[np.ndarray], float, float]:
    """BM25 scores of every document for every query.

    Returns:
        One float32 array (documents,) per query, and the seconds spent on the documents and on the queries.
    """
    import bm25s

    english = stemmer()

    def tokens(texts: Sequence[str]) -> Any:
        return bm25s.tokenize(
            list(texts),
            token_pattern=BM25_TOKEN,
            stopwords="en",
            stemmer=english,
            return_ids=False,
            show_progress=False,
        )

    started = time.perf_counter()
    index = bm25s.BM25(k1=BM25_K1, b=BM25_B)
    index.index(tokens(documents), show_progress=False)
    indexed = time.perf_counter()
    # The library refuses a query without tokens (stop words alone); it matches nothing.
    nothing = np.zeros(len(documents), dtype=np.float32)
    rows = [index.get_scores(query).astype(np.float32) if query else nothing for query in tokens(queries)]
    return rows, indexed - started, time.perf_counter() - indexed


def stemmer() -> Any:
    """The English Snowball stemmer where PyStemmer is installed (worth about 0.03 nDCG@10), else None."""
    try:
        return importlib.import_module("Stemmer").Stemmer("english")
    except ImportError:
        return None
