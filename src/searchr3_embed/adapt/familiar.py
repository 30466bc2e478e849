"""Where a thinker knows its way: near the questions that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import faiss
import numpy as np
import torch

from searchr3_embed.embedder import ReasoningEmbedder
from searchr3_embed.question_side import Familiar


def centres(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Centres of clusters by spherical k-means.

    Args:
        vectors: Unit rows, float32 of shape (questions, dimension).
        count: Number of centres; as many as there are questions if that is less.
        seed: Of the first centres.

    Returns:
        Unit rows, float32 of shape (centres, dimension).
    """
    count = min(count, len(vectors))
    means = faiss.Kmeans(vectors.shape[1], count, niter=20, spherical=True, seed=seed, min_points_per_centroid=1)
    means.train(np.ascontiguousarray(vectors))
    return np.asarray(means.centroids, dtype=np.float32)


def fit(
    embedder: ReasoningEmbedder,
    questions: Mapping[str, Sequence[str]],
    count: int,
    foreign: float,
    known: float,
    seed: int,
) -> Familiar:
    """Where a thinker knows its way: clusters of each source's questions, so that small sources count too.

    Args:
        embedder: Gives the encoder's vectors.
        questions: The training questions by source.
        count: Most clusters of a source.
        foreign: See :class:`searchr3_embed.question_side.Familiar`.
        known: See there.
        seed: Of the first centres.

    Raises:
        ValueError: There are no questions, or the cosines are out of order.
    """
    if not any(questions.values()):
        raise ValueError("There are no questions in the data.")
    if not -1 <= foreign < known <= 1:
        raise ValueError(f"foreign must be below known, both from -1 to 1, got {foreign} and {known}.")
    found = []
    for asked in questions.values():
        if distinct := sorted(set(asked)):
            vectors = embedder.encode_query(
                distinct, reason=False, normalize_embeddings=True, show_progress_bar=True, batch_size=256
            )
            found.append(centres(vectors, count, seed))
    return Familiar(torch.from_numpy(np.concatenate(found)), foreign, known)
