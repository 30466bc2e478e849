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

# Those of vectors against documents are the library's, for `searchr3 adapt` trains with them too.
from searchr3_embed.adapt.losses import info_nce as info_nce
from searchr3_embed.adapt.losses import triplet_margin as triplet_margin

# Above this cosine a negative is taken to say the same as the positive.
NEARLY_EQUAL = 0.9


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
