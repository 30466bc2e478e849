"""How well questions find their documents in the whole corpus: trec_eval's nDCG@10, question by question."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from searchr3_embed.adapt.pairs import Pairs

DEPTH = 10


@dataclasses.dataclass(frozen=True)
class Space:
    """The corpus's vectors as they are compared with those of questions.

    Lengths are constants that no ranking depends on: they bring products to the size of cosines, so that one
    temperature fits every encoder.

    Attributes:
        documents: Float32 of shape (documents, dimension).
        cosine: Whether questions are brought to length 1; else products are compared, divided by ``length``.
        length: What questions are divided by.
    """

    documents: np.ndarray
    cosine: bool
    length: float

    @classmethod
    def of(cls, vectors: np.ndarray, questions: np.ndarray, similarity: str) -> Space:
        """The space of an encoder.

        Args:
            vectors: Of the documents.
            questions: Of some questions, by the encoder.
            similarity: ``"cosine"``, or ``"dot"`` for encoders that compare products.

        Raises:
            ValueError: Another similarity.
        """
        if similarity not in ("cosine", "dot"):
            raise ValueError(f"The encoder compares by {similarity!r}; adapting knows 'cosine' and 'dot'.")
        lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        if similarity == "cosine":
            return cls(np.ascontiguousarray(vectors / lengths, dtype=np.float32), True, 1.0)
        asked = max(float(np.linalg.norm(questions, axis=1).mean()), 1e-12)
        return cls(np.ascontiguousarray(vectors / lengths.mean(), dtype=np.float32), False, asked)


def ndcg(space: Space, vectors: np.ndarray, pairs: Pairs) -> np.ndarray:
    """NDCG@10 of each question among all documents.

    Args:
        space: The corpus.
        vectors: Of the questions, shape (questions, dimension).
        pairs: The questions, in the same order.

    Returns:
        Float64 of shape (questions,).
    """
    import pytrec_eval

    run: dict[str, dict[str, float]] = {}
    judged: dict[str, dict[str, int]] = {}
    for number, row in enumerate(best(space, vectors)):
        run[str(number)] = row
        judged[str(number)] = {str(answer): 1 for answer in pairs.answers[number]}
    measured: Any = pytrec_eval.RelevanceEvaluator(judged, {f"ndcg_cut.{DEPTH}"}).evaluate(run)
    return np.array([measured[str(number)][f"ndcg_cut_{DEPTH}"] for number in range(len(pairs))])


def best(space: Space, vectors: np.ndarray, depth: int = DEPTH, chunk: int = 256) -> list[dict[str, float]]:
    """The best documents of each question: their numbers as text, and their scores."""
    found: list[dict[str, float]] = []
    asked = np.asarray(vectors, dtype=np.float32)
    if space.cosine:
        asked = asked / np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-12)
    depth = min(depth, len(space.documents))
    for start in range(0, len(asked), chunk):
        scores = asked[start : start + chunk] @ space.documents.T
        rows = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
        for line, chosen in zip(scores, rows, strict=True):
            found.append({str(row): float(line[row]) for row in chosen})
    return found
