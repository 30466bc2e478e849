"""Decides which documents of the environment are encoded again: each strategy is one small pure function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Candidates:
    """What a strategy chooses from; arrays of shape (candidates,).

    Attributes:
        rows: Row numbers, ascending.
        best_rank: Best rank over the rollouts, from 0, positives not counted; candidates that are only graph
            neighbours have the number of search results.
        age: Policy steps since the row was encoded; all above the allowed age.
        impact: How much of the reward the row's drift may change, summed over the rollouts, see ``rank_impact``.
    """

    rows: np.ndarray
    best_rank: np.ndarray
    age: np.ndarray
    impact: np.ndarray


def refresh_nothing(candidates: Candidates) -> np.ndarray:
    """Nothing: every vector stays as it was at the first step."""
    return candidates.rows[:0]


def refresh_neighbourhood(candidates: Candidates) -> np.ndarray:
    """The best ranked first, among equals the oldest: what the rollouts found and what lies around it."""
    return candidates.rows[np.lexsort((-candidates.age, candidates.best_rank))]


def refresh_impact(candidates: Candidates) -> np.ndarray:
    """First what may change the reward most: stale rows that compete with a positive for a rank that counts."""
    return candidates.rows[np.lexsort((-candidates.age, candidates.best_rank, -candidates.impact))]


def refresh_all(candidates: Candidates) -> np.ndarray:
    """Everything that is stale: the reference. The environment offers it the whole corpus and no budget."""
    return candidates.rows


# Each gives the row numbers to encode again, most urgent first. Stale positives are encoded before, whatever the
# strategy, unless it is "none".
STRATEGIES: dict[str, Callable[[Candidates], np.ndarray]] = {
    "none": refresh_nothing,
    "neighbourhood": refresh_neighbourhood,
    "impact": refresh_impact,
    "all": refresh_all,
}


def rank_impact(scores: np.ndarray, thresholds: np.ndarray, ranks: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """How much the reward may change because a document's score is uncertain.

    A document that passes a positive of cosine c on rank r changes its gain by c (1/log2(r+2) - 1/log2(r+3)). How
    likely that is falls with the distance of the two scores, in units of the document's uncertainty.

    Args:
        scores: Of the documents, shape (pairs, documents); a pair is a rollout and one of its positives.
        thresholds: Cosine of the positive of each pair, shape (pairs,).
        ranks: Its rank, from 0, shape (pairs,).
        spread: Standard deviation of each document's score, shape (documents,).

    Returns:
        Summed over the pairs, shape (documents,).
    """
    step = np.maximum(thresholds, 0.0) * (1 / np.log2(ranks + 2.0) - 1 / np.log2(ranks + 3.0))
    distance = (scores - thresholds[:, None]) / np.maximum(spread, 1e-12)
    return np.asarray(step @ np.exp(-0.5 * np.square(distance)))
