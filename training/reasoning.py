"""Reasoning targets: a few terms that an answer would contain and the question does not.

A term is worth learning to write when it is *salient* in the right document (TF-IDF), absent from the question, and
*predictable*: it also stands in the documents that answer similar questions. Terms that no neighbour shares can't be
guessed from the question, and a model taught to guess them learns to write noise; a query without predictable terms
gets none, and its reasoning ends at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import faiss
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm import tqdm

from training.data import Record

_WORD = r"(?u)\b[a-z][a-z]{2,}\b"
# Two words with so many equal first letters count as forms of one word: "symptom" says nothing after "symptoms".
_STEM_LETTERS = 5


def predictable_terms(
    records: Sequence[Record],
    query_vectors: np.ndarray,
    *,
    most_terms: int = 5,
    neighbours: int = 16,
    least_support: int = 2,
) -> list[list[str]]:
    """Chooses the terms of each record's reasoning.

    Args:
        records: Queries with the documents that answer them.
        query_vectors: Unit rows of a reference embedder, float32, shape (records, dimension).
        most_terms: Most terms a query gets.
        neighbours: Number of similar queries whose documents vote.
        least_support: Votes that a term needs.

    Returns:
        Terms in lower case, the strongest first; a list per record, empty where nothing can be predicted.
    """
    texts = [" ".join(record.positives) for record in records]
    # A word in more than a tenth of the documents tells nothing; in small collections fifty are always allowed.
    common = max(50, len(texts) // 10)
    vectorizer = TfidfVectorizer(
        token_pattern=_WORD, stop_words="english", sublinear_tf=True, min_df=3, max_df=common, dtype=np.float32
    )
    weights = vectorizer.fit_transform(texts).tocsr()
    present = weights.copy()
    present.data[:] = 1.0
    words = vectorizer.get_feature_names_out()
    # More are fetched than vote: a neighbour that shares the very document must not vote for its terms.
    index = faiss.IndexFlatIP(query_vectors.shape[1])
    index.add(query_vectors)
    chosen = []
    for start in tqdm(range(0, len(records), 512), desc="Choosing terms", mininterval=5):
        _, near = index.search(query_vectors[start : start + 512], neighbours * 3)
        for row, candidates in enumerate(near, start=start):
            mine = set(records[row].positives)
            voters = [i for i in candidates if i != row and mine.isdisjoint(records[i].positives)][:neighbours]
            votes = np.asarray(present[voters].sum(axis=0)).ravel() if voters else np.zeros(len(words))
            own = weights[row]
            scored = [
                (value * votes[term] / (votes[term] + 2), words[term])
                for term, value in zip(own.indices, own.data, strict=True)
                if votes[term] >= least_support
            ]
            chosen.append(_strongest(scored, records[row].query, most_terms))
    return chosen


def _strongest(scored: Sequence[tuple[float, str]], query: str, most: int) -> list[str]:
    """The best terms, no two forms of one word, none that the question holds already."""
    seen = {word[:_STEM_LETTERS] for word in re.findall(r"[a-z]+", query.lower())}
    terms: list[str] = []
    for _, word in sorted(scored, key=lambda pair: (-pair[0], pair[1])):
        if word[:_STEM_LETTERS] not in seen:
            seen.add(word[:_STEM_LETTERS])
            terms.append(word)
        if len(terms) == most:
            break
    return terms
