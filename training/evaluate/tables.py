"""Markdown tables of an evaluation's results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from training.evaluate.metrics import NDCG, RECALL


def render(results: Mapping[str, Any]) -> str:
    """The tables of a run as Markdown."""
    return "\n\n".join(_render_parts(results)) + "\n"


def _render_parts(results: Mapping[str, Any]) -> Iterator[str]:
    if results["sets"]:
        yield from _render_sets(results)
    if mteb := results.get("mteb"):
        rows = [
            [label, *(f"{row['tasks'][task]:.4f}" for task in mteb["tasks"]), f"{row['mean']:.4f}"]
            for label, row in mteb["models"].items()
        ]
        header = [f"mteb {mteb['version']}", *(f"{name} ({t['metric']})" for name, t in mteb["tasks"].items()), "mean"]
        yield markdown_table(header, rows)


def _render_sets(results: Mapping[str, Any]) -> Iterator[str]:
    settings, models, names = results["settings"], results["models"], list(results["sets"])
    size = "small lists" if settings["small"] else "whole corpora"
    dtype = "" if settings["dtype"] == "auto" else f" Weights in {settings['dtype']}."
    yield f"Split: {settings['split']}, {size}. Mean: over the sets, each counting the same.{dtype}"
    for name, counts in results["left_out"].items():
        yield f"{name}: {', '.join(f'{count} {reason}' for reason, count in counts.items())}."
    parts = results.get("parts", {})
    for part, members in parts.items():
        yield f"{part.replace('_', ' ').capitalize()}: {', '.join(members)}."
    for metric, title in ((NDCG, "nDCG@10"), (RECALL, "recall@100")):
        relative = results["baseline"] if metric == NDCG else None
        rows = []
        for label, model in models.items():
            cells = [f"{model['sets'][name][metric]:.4f}" for name in names]
            cells += [f"{model[mean][metric]:.4f}" for mean in ("mean", *parts)]
            if relative:
                cells.append(_number(model["relative_to_baseline"]["mean"], 4))
            rows.append([label, *cells])
        means = ["mean", *(f"mean {part.replace('_', ' ')}" for part in parts)]
        header = [title, *names, *means, *([f"relative to {relative}"] if relative else [])]
        yield markdown_table(header, rows)
    columns = (
        ("ms_per_query", "ms per query", 2),
        ("ms_per_document", "ms per document", 2),
        ("reasoning_tokens_per_query", "reasoning tokens per query", 1),
        ("embed_token_share", "ended by the embed token", 4),
    )
    rows = [[label, *(_number(m["mean"][key], digits) for key, _, digits in columns)] for label, m in models.items()]
    yield markdown_table(["cost", *(title for _, title, _ in columns)], rows)
    comparisons = {f"{name}: reasoning minus direct": test for name, test in results["reasoning_vs_direct"].items()}
    comparisons |= {f"reasoning minus {name}": test for name, test in results["reasoning_vs_budget"].items()}
    for title, comparison in comparisons.items():
        tests = {**comparison["sets"], "all queries": comparison["all_queries"]}
        rows = [
            ["difference in nDCG@10", *(f"{test['difference']:+.4f}" for test in tests.values())],
            ["p (paired randomisation)", *(f"{test['p_value']:.4f}" for test in tests.values())],
        ]
        yield markdown_table([title, *tests], rows)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table: the first column to the left, all others to the right; cells stand as they are."""
    sides = ("left", *["right"] * (len(header) - 1))
    return tabulate(rows, header, tablefmt="pipe", colalign=sides, disable_numparse=True)
