"""Is a difference larger than chance makes it? A paired randomisation test over the queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from searchr3_embed.adapt.significance import paired_test
from training.evaluate.cells import Cell
from training.evaluate.metrics import NDCG


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
