"""Is a difference larger than chance makes it? A paired randomisation test over the questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PERMUTATIONS = 9_999


def paired_test(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Paired randomisation test, two-sided: is the mean difference larger than chance makes it?

    Args:
        pairs: Per query, the score of one side and that of the other.

    Returns:
        ``difference`` (mean of the one minus the other) and ``p_value``; seeded, so it repeats.
    """
    from scipy.stats import permutation_test

    values = np.asarray(pairs, dtype=float)
    difference = float(np.mean(values[:, 0] - values[:, 1]))
    if len(values) < 2 or not np.any(values[:, 0] != values[:, 1]):
        return {"difference": difference, "p_value": 1.0}
    test = permutation_test(
        (values[:, 0], values[:, 1]),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=500,  # bounds memory: 500 x queries
        rng=np.random.default_rng(0),
    )
    return {"difference": difference, "p_value": float(test.pvalue)}
