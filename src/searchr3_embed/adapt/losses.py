"""The losses of question vectors against documents that are constants, each a pure function of tensors."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def info_nce(queries: Tensor, documents: Tensor, gold: Tensor, excluded: Tensor, temperature: float) -> Tensor:
    """InfoNCE of each query against all documents (van den Oord et al. 2018, https://arxiv.org/abs/1807.03748).

    Args:
        queries: Unit rows, shape (queries, dimension).
        documents: Unit rows, shape (documents, dimension).
        gold: Number of the document that answers each query, int64 of shape (queries,).
        excluded: True where a document is no negative of a query because it answers it too, bool of shape
            (queries, documents); what stands there at the gold document does not matter.
        temperature: Divides the cosines.

    Returns:
        The mean over the queries, a scalar.
    """
    scores = _without(queries @ documents.T / temperature, gold, excluded)
    return F.cross_entropy(scores, gold)


def triplet_margin(queries: Tensor, documents: Tensor, gold: Tensor, excluded: Tensor, margin: float) -> Tensor:
    """``max(0, margin - cos(q, d+) + cos(q, d-))`` with the hardest negative of the batch as d-.

    Args:
        queries: Unit rows, shape (queries, dimension).
        documents: Unit rows, shape (documents, dimension).
        gold: As in :func:`info_nce`.
        excluded: As in :func:`info_nce`.
        margin: By how much the right document must be nearer, in cosine.

    Returns:
        The mean over the queries, a scalar; 0 where a batch holds no negative at all.
    """
    scores = _without(queries @ documents.T, gold, excluded)
    right = scores.gather(1, gold[:, None]).squeeze(1)
    # Set apart by -inf rather than by an index, so that a query without negatives has no loss instead of an error.
    hardest = scores.scatter(1, gold[:, None], -math.inf).amax(dim=1)
    return F.relu(margin - right + hardest).mean()


def _without(scores: Tensor, gold: Tensor, excluded: Tensor) -> Tensor:
    """Scores in which documents that answer the query too, the gold one apart, can't win."""
    others = excluded.scatter(1, gold[:, None], False)
    return scores.masked_fill(others, -math.inf)
