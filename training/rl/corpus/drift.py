"""An estimate of how far the documents that were not encoded again have moved: the part that all have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The previous estimate of the common drift counts as much as so many rows that are one step old.
_PRIOR_ROWS = 1.0


@dataclass
class Drift:
    """The movement that all documents have in common, learned from the rows that are encoded anyway.

    An update of the weights moves all documents partly in the same direction. ``totals`` holds how far they have moved
    so since ``build``, for every policy step at which documents were encoded. A row encoded at step s and scored at
    step t has moved by about ``totals[t] - totals[s]``; it is made a unit row again, or the documents nearest to a
    query, which can hardly come nearer, would be corrected too far. Each estimate starts from the row's own stamp, so
    errors do not add up.

    Attributes:
        steps: Policy steps with an estimate, ascending, int64, shape (steps,); the first is 0.
        totals: Common movement up to each step, float32, shape (steps, d).
        weights: How much is behind each estimate, float64, shape (steps,).
        spread: Standard deviation of a score's movement beyond the common one, for a row of age 1; shape ().
    """

    steps: np.ndarray
    totals: np.ndarray
    weights: np.ndarray
    spread: np.ndarray

    @classmethod
    def none(cls, size: int) -> Drift:
        """No movement yet."""
        return cls(np.zeros(1, dtype=np.int64), np.zeros((1, size), dtype=np.float32), np.zeros(1), np.zeros(()))

    def since(self, stamps: np.ndarray) -> np.ndarray:
        """Common movement from each stamp to the last step, float32 of shape (stamps, d)."""
        return np.asarray(self.totals[-1] - self.totals[np.searchsorted(self.steps, stamps)])

    def learn(self, moved: np.ndarray, stamps: np.ndarray, step: int, missed: np.ndarray) -> None:
        """Learns from rows that were encoded again.

        Args:
            moved: How far each row moved since it was encoded, shape (rows, d).
            stamps: When that was, shape (rows,).
            step: The policy step now.
            missed: By how much the score of each row was wrong for each rollout, shape (rows, rollouts).
        """
        old = stamps < step  # rows of this very step hold no news
        if not old.any():
            return
        age = (step - stamps[old]).astype(np.float64)
        if self.steps[-1] != step:
            self.steps = np.append(self.steps, step)
            self.totals = np.vstack([self.totals, self.totals[-1:]])
            # The estimate of the step before counts too, so that a few old rows can't move it far.
            self.weights = np.append(self.weights, _PRIOR_ROWS)
        measured = float(np.sqrt(np.mean(np.square(missed[old] / age[:, None]))))
        self.spread = np.asarray(measured if not self.spread else 0.9 * self.spread + 0.1 * measured)
        weight = 1 / age
        seen = weight @ (moved[old] + self.totals[np.searchsorted(self.steps, stamps[old])])
        total = self.weights[-1] + weight.sum()
        self.totals[-1] = (self.weights[-1] * self.totals[-1] + seen) / total
        self.weights[-1] = total
