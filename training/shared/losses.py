"""The terms of the losses of both stages, each a pure function of tensors.

``L = L_SFT + L_KL + L_InfoNCE + L_triplet`` is the paper's sum for stage 1 (https://arxiv.org/abs/2510.07048). The
terms with a teacher, and those of embeddings in stage 2, are ours. The functions of embeddings return means over the
queries; the functions of logits return sums over the tokens, because the tokens of one batch come in several forward
passes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Above this cosine a negative is taken to say the same as the positive.
NEARLY_EQUAL = 0.9


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


def memory_loss(closing: Tensor, memory: Tensor, temperature: float) -> Tensor:
    """InfoNCE of the rollouts' embeddings against documents as the environment knows them.

    The environment ranks all documents for every rollout anyway; what stands highest without being an answer is the
    hardest negative of the whole corpus, for free (memory bank: Wu et al. 2018, https://arxiv.org/abs/1805.01978; hard
    negatives of the whole corpus: Xiong et al. 2021, https://arxiv.org/abs/2007.00808).

    Args:
        closing: State at the last token of each rollout, shape (rollouts, dimension).
        memory: Unit rows of a positive and of the negatives, shape (rollouts, 1 + negatives, dimension), without
            gradient; rows of 0 are no documents, and rollouts that never closed have none.
        temperature: Divides the cosines.

    Returns:
        The mean over the rollouts that have documents, a scalar; 0 if there are none. A negative that nearly equals
        the positive is left out: it is an answer that nobody has judged.
    """
    vectors = F.normalize(closing.float(), dim=-1)
    scores = torch.einsum("rd,rnd->rn", vectors, memory) / temperature
    nothing = memory.abs().sum(-1) == 0
    same = torch.einsum("rd,rnd->rn", memory[:, 0], memory) > NEARLY_EQUAL
    same[:, 0] = False
    scores = scores.masked_fill(nothing | same, -math.inf)
    lost = -scores[~nothing[:, 0]].log_softmax(dim=-1)[:, 0]
    return lost.sum() / max(1, len(lost))


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


def distance(vectors: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``1 - cosine`` between unit rows of the student and of the teacher, both (rows, dimension)."""
    return 1 - (vectors * targets).sum(-1).mean()


def relation_divergence(vectors: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Divergence of the student's neighbourhoods from the teacher's: which of the other texts each text is near to.

    KL(teacher || student) of the softmax over a text's similarities to all others, which weighs the distances by what
    they change in a ranking (relational distillation, Park et al. 2019, https://arxiv.org/abs/1904.05068).

    Args:
        vectors: Unit rows of the student, shape (texts, dimension).
        targets: Unit rows of the teacher for the same texts, shape (texts, any dimension).
        temperature: Divides the cosines of both.

    Returns:
        The mean over the texts, a scalar; 0 for a single text.
    """
    if len(vectors) < 2:
        return vectors.sum() * 0
    others = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    mine = (vectors @ vectors.T / temperature)[others].view(len(vectors), -1)
    theirs = (targets @ targets.T / temperature)[others].view(len(vectors), -1)
    return F.kl_div(mine.log_softmax(-1), theirs.log_softmax(-1), reduction="batchmean", log_target=True)


def language(logits: Tensor, goals: Tensor) -> Tensor:
    """Cross-entropy of the next tokens.

    Args:
        logits: Float32 of shape (tokens, vocabulary).
        goals: The tokens that come, int64 of shape (tokens,).

    Returns:
        The sum over the tokens, a scalar.
    """
    return F.cross_entropy(logits, goals, reduction="sum")


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(tuned || frozen) of the next-token distributions.

    Args:
        logits: Of the model in training, float32 of shape (tokens, vocabulary).
        reference: Of the frozen base for the same tokens, same shape.

    Returns:
        The sum over the tokens, a scalar.
    """
    return F.kl_div(F.log_softmax(reference, dim=-1), F.log_softmax(logits, dim=-1), reduction="sum", log_target=True)
