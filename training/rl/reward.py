"""The reward of a rollout: one small pure function for each part, and ``rewards``, which adds them up.

Only what differs inside a group of rollouts teaches anything, because GRPO subtracts the group's mean. That is why the
ranking part holds the similarity itself and not only the rank: when all rollouts of a query already rank its positive
first, the one that is closer to it is still worth more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from training.rl.corpus.environment import Outcome


@dataclass(frozen=True)
class RewardSettings:
    """The weights of the parts.

    Attributes:
        dcg: Weight of ``scaled_dcg``.
        format: Weight of the format part, which is 1 for every rollout that wrote the embed token. It separates
            finished rollouts from failed ones; among finished ones it is constant and cancels.
        margin: Weight of ``margin``.
        brevity: Weight of ``brevity``.
        brevity_tokens: Length at which ``brevity`` has fallen to 0.
        failed: The whole reward of a rollout that did not write the embed token.
    """

    dcg: float = 1.0
    format: float = 0.1
    margin: float = 0.0
    brevity: float = 0.0
    brevity_tokens: int = 256
    failed: float = -0.2

    def __post_init__(self) -> None:
        for name in ("dcg", "format", "margin", "brevity"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {value!r}.")
        if self.brevity_tokens < 1:
            raise ValueError(f"brevity_tokens must be an integer >= 1, got {self.brevity_tokens!r}.")
        # The worst finished rollout: no similarity at all, and the hardest negative opposite to the positive.
        least = self.format - self.margin
        if not self.failed < least:
            raise ValueError(
                f"failed must be below format - margin = {least:g}, the least a finished rollout can get, or one "
                f"without the embed token could be worth more than one with it; got {self.failed!r}."
            )


def is_finished(completion_ids: Sequence[int], embed_token_id: int) -> bool:
    """Whether a rollout has the right form: exactly one embed token, at its end.

    Args:
        completion_ids: What the model wrote, padding removed. Not its text, which has no special tokens.
        embed_token_id: The token's id.
    """
    ids = list(completion_ids)
    return bool(ids) and ids[-1] == embed_token_id and ids.count(embed_token_id) == 1


def scaled_dcg(
    ranks: Sequence[int] | np.ndarray,
    similarities: Sequence[float] | np.ndarray,
    relevances: Sequence[float] | np.ndarray | None = None,
) -> float:
    """Graded DCG with the continuous similarity as gain, over the ideal without similarities.

    ``sum_i rel_i * max(cos_i, 0) / log2(rank_i + 2)`` over the positives, divided by ``sum_i rel_i / log2(i + 2)``
    with the relevances in falling order. There is no cut-off: a positive on rank 300 that rises to 200 is progress,
    and a reward that does not see it gives the group no signal.

    Args:
        ranks: Rank of each positive in the full list, from 0; different numbers, shape (positives,).
        similarities: Cosine of each positive, shape (positives,).
        relevances: Grade of each positive, above 0; None takes 1 for all.

    Returns:
        From 0 to 1; 1 when all positives stand on top in the order of their grades, each with cosine 1.
    """
    places = np.asarray(ranks, dtype=np.float64)
    cosines = np.maximum(np.asarray(similarities, dtype=np.float64), 0.0)
    grades = np.ones(len(places)) if relevances is None else np.asarray(relevances, dtype=np.float64)
    if not len(places) == len(cosines) == len(grades) or not len(places):
        raise ValueError(
            "one rank, one similarity and one relevance for each of at least one positive are needed, got "
            f"{len(places)}, {len(cosines)} and {len(grades)}."
        )
    if not (grades > 0).all():
        raise ValueError(f"a relevance must be above 0, got {grades.min():g}.")
    ideal = np.sum(-np.sort(-grades) / np.log2(np.arange(len(grades)) + 2.0))
    return float(np.sum(grades * cosines / np.log2(places + 2.0)) / ideal)


def margin(similarities: Sequence[float] | np.ndarray, hardest_negative: float) -> float:
    """How far the best positive stands above the best other document, half the difference of the cosines.

    Returns:
        From -1 to 1; 0 when there is no other document (``hardest_negative`` is NaN).
    """
    return 0.0 if math.isnan(hardest_negative) else float((np.max(similarities) - hardest_negative) / 2)


def brevity(length: int, limit: int) -> float:
    """1 for a reasoning without tokens, falling linearly to 0 at ``limit`` tokens and beyond."""
    return max(0.0, 1.0 - length / limit)


def rewards(
    outcome: Outcome,
    finished: Sequence[bool],
    lengths: Sequence[int],
    settings: RewardSettings,
    relevances: Sequence[Sequence[float]] | None = None,
) -> np.ndarray:
    """The reward of every rollout.

    Args:
        outcome: What the environment said about all rollouts, or about the finished ones only, in their order.
        finished: Whether each rollout wrote the embed token, see ``is_finished``.
        lengths: Reasoning tokens of each rollout.
        settings: The weights.
        relevances: Grades of the positives of each rollout in ``outcome``; None takes 1 for all.

    Returns:
        Float64 array of shape (rollouts,), all finite; every finished rollout above every failed one.

    Raises:
        ValueError: The numbers of rollouts do not fit together.
    """
    done = [i for i, good in enumerate(finished) if good]
    scored = len(outcome.ranks)
    if len(lengths) != len(finished) or scored not in (len(finished), len(done)):
        raise ValueError(
            f"{len(finished)} rollouts, {len(done)} finished, have {len(lengths)} lengths and {scored} scores; "
            "there must be a length for each, and a score for each or for each finished one."
        )
    if relevances is not None and len(relevances) != scored:
        raise ValueError(
            f"{scored} scored rollouts have relevances for {len(relevances)}; there must be one list each."
        )
    result = np.full(len(finished), float(settings.failed))
    for place, i in enumerate(done):
        row = i if scored == len(finished) else place
        result[i] = (
            settings.format
            + settings.dcg
            * scaled_dcg(
                outcome.ranks[row], outcome.similarities[row], None if relevances is None else relevances[row]
            )
            + settings.margin * margin(outcome.similarities[row], float(outcome.hardest_negative[row]))
            + settings.brevity * brevity(lengths[i], settings.brevity_tokens)
        )
    return result
