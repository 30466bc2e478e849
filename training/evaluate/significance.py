"""Is a difference larger than chance makes it? A paired randomisation test over the queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.evaluate.cells import Cell
from training.evaluate.metrics import NDCG

PERMUTATIONS = 9_999


def paired_test(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Paired randomisation test, two-sided: is the mean difference larger than chance makes it?

    Args:
        pairs: Per query, the score with reasoning and the score without.

    Returns:
        ``difference`` (mean of with minus without) and ``p_value``; seeded, so it repeats.
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


def compare_modes(
    table: Mapping[tuple[str, str], Cell], labels: Sequence[str], set_names: Sequence[str]
) -> dict[str, Any]:
    """Reasoning against direct for every checkpoint measured in both modes: difference in nDCG@10 and p-value."""
    names = [label.removesuffix(":reason") for label in labels if label.endswith(":reason")]
    return {
        name: _compare(table, f"{name}:reason", f"{name}:direct", set_names)
        for name in names
        if f"{name}:direct" in labels
    }


def compare_budgets(
    table: Mapping[tuple[str, str], Cell], labels: Sequence[str], set_names: Sequence[str]
) -> dict[str, Any]:
    """Reasoning with the checkpoint's budget against the same weights with the budget of a row of its own.

    Returns:
        By the label of that row, as :func:`compare_modes`.
    """
    pairs = [(label, label.rpartition(":")[0]) for label in labels]
    return {
        other: _compare(table, label, other, set_names)
        for other, label in pairs
        if label.endswith(":reason") and label in labels
    }


def _compare(table: Mapping[tuple[str, str], Cell], one: str, other: str, set_names: Sequence[str]) -> dict[str, Any]:
    pairs = {
        set_name: [
            (table[one, set_name].per_query[query][NDCG], row[NDCG])
            for query, row in table[other, set_name].per_query.items()
        ]
        for set_name in set_names
    }
    return {
        "sets": {set_name: paired_test(values) for set_name, values in pairs.items()},
        "all_queries": paired_test([pair for values in pairs.values() for pair in values]),
    }
