"""The results of an evaluation: means, ratios, tests of significance, and the files that show them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

NDCG, RECALL = "ndcg@10", "recall@100"
# trec_eval's names for the two; documents below the deepest cut-off never count.
TREC_MEASURES = {NDCG: "ndcg_cut_10", RECALL: "recall_100"}
PERMUTATIONS = 9_999


class EvaluationError(ValueError):
    """A request that cannot be met; the message is one sentence for the user."""


@dataclass(frozen=True)
class Settings:
    """What else decides the scores: the files of one run must agree in it."""

    split: str = "test"
    small: bool = False
    max_reasoning_tokens: int | None = None
    dtype: str = "auto"  # of the weights; "auto" leaves it to the models, which take float32 on a CPU


@dataclass
class Cell:
    """One model on one set. Times are wall-clock milliseconds, tokenising included, loading excluded."""

    model: str
    set: str
    queries: int
    documents: int
    scores: dict[str, float]  # metric -> mean over the queries
    per_query: dict[str, dict[str, float]]  # query id -> metric -> score
    ms_per_query: float
    ms_per_document: float
    reasoning_tokens_per_query: float | None = None
    embed_token_share: float | None = None  # share of queries whose reasoning ended with the token, not the budget
    reasonings: dict[str, dict[str, Any]] = field(default_factory=dict)


def summarise(cells: Sequence[Cell], settings: Settings, baseline: str | None) -> dict[str, Any]:
    """Puts the cells together: means over the sets, ratios to the baseline, reasoning against direct.

    Returns:
        ``{"settings", "environment", "baseline", "sets", "models", "reasoning_vs_direct"}``; ``models`` maps a label
        to ``{"sets": {set: {...}}, "mean": {...}, "relative_to_baseline": {set: ratio, "mean": ratio} | None}``.
    """
    labels = list(dict.fromkeys(cell.model for cell in cells))
    set_names = list(dict.fromkeys(cell.set for cell in cells))
    table = {(cell.model, cell.set): cell for cell in cells}
    if baseline is None and "teacher" in labels:
        baseline = "teacher"
    models: dict[str, Any] = {}
    for label in labels:
        row = [table[label, name] for name in set_names]
        models[label] = {"sets": {cell.set: _figures(cell) for cell in row}, "mean": _mean_figures(row)}
    for label in labels:
        models[label]["relative_to_baseline"] = _ratios(models[label], models[baseline]) if baseline else None
    first = [table[labels[0], name] for name in set_names]
    return {
        "settings": {**asdict(settings), "bm25_stemmer": importlib.util.find_spec("Stemmer") is not None},
        "environment": environment(),
        "baseline": baseline,
        "sets": {cell.set: {"queries": cell.queries, "documents": cell.documents} for cell in first},
        "models": models,
        "reasoning_vs_direct": _compare_modes(table, labels, set_names),
    }


def _figures(cell: Cell) -> dict[str, float | None]:
    return {
        **cell.scores,
        "ms_per_query": cell.ms_per_query,
        "ms_per_document": cell.ms_per_document,
        "reasoning_tokens_per_query": cell.reasoning_tokens_per_query,
        "embed_token_share": cell.embed_token_share,
    }


def _mean_figures(row: Sequence[Cell]) -> dict[str, float | None]:
    """Scores: mean over the sets, each set counting the same. Costs: per query or document, over all of them."""
    queries = [cell.queries for cell in row]
    means: dict[str, float | None] = {m: float(np.mean([cell.scores[m] for cell in row])) for m in TREC_MEASURES}
    means["ms_per_query"] = float(np.average([cell.ms_per_query for cell in row], weights=queries))
    documents = [cell.documents for cell in row]
    means["ms_per_document"] = float(np.average([cell.ms_per_document for cell in row], weights=documents))
    for name in ("reasoning_tokens_per_query", "embed_token_share"):
        values = [getattr(cell, name) for cell in row]
        means[name] = None if None in values else float(np.average(values, weights=queries))
    return means


def _ratios(model: dict[str, Any], baseline: dict[str, Any]) -> dict[str, float | None]:
    pairs = {name: (figures[NDCG], baseline["sets"][name][NDCG]) for name, figures in model["sets"].items()}
    pairs["mean"] = (model["mean"][NDCG], baseline["mean"][NDCG])
    return {name: value / reference if reference else None for name, (value, reference) in pairs.items()}


def _compare_modes(
    table: Mapping[tuple[str, str], Cell], labels: Sequence[str], set_names: Sequence[str]
) -> dict[str, Any]:
    """Reasoning against direct for every checkpoint measured in both modes: difference in nDCG@10 and p-value."""
    comparisons = {}
    for name in (label.removesuffix(":reason") for label in labels if label.endswith(":reason")):
        if f"{name}:direct" not in labels:
            continue
        pairs = {
            set_name: [
                (table[f"{name}:reason", set_name].per_query[query][NDCG], row[NDCG])
                for query, row in table[f"{name}:direct", set_name].per_query.items()
            ]
            for set_name in set_names
        }
        comparisons[name] = {
            "sets": {set_name: paired_test(values) for set_name, values in pairs.items()},
            "all_queries": paired_test([pair for values in pairs.values() for pair in values]),
        }
    return comparisons


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


def environment() -> dict[str, Any]:
    """The machine and the versions that the times and the last digits depend on."""
    import torch

    packages = ("torch", "transformers", "sentence-transformers", "numpy", "bm25s", "pytrec-eval-terrier")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: _version(name) for name in packages},
    }


def _cpu_name() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return found[1] if found else platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
        yield _markdown_table(header, rows)


def _render_sets(results: Mapping[str, Any]) -> Iterator[str]:
    settings, models, names = results["settings"], results["models"], list(results["sets"])
    size = "small lists" if settings["small"] else "whole corpora"
    dtype = "" if settings["dtype"] == "auto" else f" Weights in {settings['dtype']}."
    yield f"Split: {settings['split']}, {size}. Mean: over the sets, each counting the same.{dtype}"
    for metric, title in ((NDCG, "nDCG@10"), (RECALL, "recall@100")):
        relative = results["baseline"] if metric == NDCG else None
        rows = []
        for label, model in models.items():
            cells = [f"{model['sets'][name][metric]:.4f}" for name in names] + [f"{model['mean'][metric]:.4f}"]
            if relative:
                cells.append(_number(model["relative_to_baseline"]["mean"], 4))
            rows.append([label, *cells])
        header = [title, *names, "mean", *([f"relative to {relative}"] if relative else [])]
        yield _markdown_table(header, rows)
    columns = (
        ("ms_per_query", "ms per query", 2),
        ("ms_per_document", "ms per document", 2),
        ("reasoning_tokens_per_query", "reasoning tokens per query", 1),
        ("embed_token_share", "ended by the embed token", 4),
    )
    rows = [[label, *(_number(m["mean"][key], digits) for key, _, digits in columns)] for label, m in models.items()]
    yield _markdown_table(["cost", *(title for _, title, _ in columns)], rows)
    for name, comparison in results["reasoning_vs_direct"].items():
        tests = {**comparison["sets"], "all queries": comparison["all_queries"]}
        rows = [
            ["difference in nDCG@10", *(f"{test['difference']:+.4f}" for test in tests.values())],
            ["p (paired randomisation)", *(f"{test['p_value']:.4f}" for test in tests.values())],
        ]
        yield _markdown_table([f"{name}: reasoning minus direct", *tests], rows)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        pairs = zip(row, widths, strict=True)
        first, *rest = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(pairs))
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Grouped bars: nDCG@10 of every model on every set and on the mean."""
    from matplotlib.figure import Figure

    names, models = list(results["sets"]), results["models"]
    figure = Figure(figsize=(2.5 + 0.28 * (len(names) + 1) * (len(models) + 1), 4.2), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    width = 0.8 / len(models)
    for i, (label, model) in enumerate(models.items()):
        heights = [model["sets"][name][NDCG] for name in names] + [model["mean"][NDCG]]
        positions = np.arange(len(heights)) - 0.4 + (i + 0.5) * width
        bars = axes.bar(positions, heights, width, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=6, rotation=90, padding=2)
    axes.set_xticks(range(len(names) + 1), [*names, "mean"])
    axes.set_ylabel("nDCG@10")
    axes.set_ylim(0, 1.08)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=min(4, len(models)), frameon=False)
    figure.savefig(path)


def write_results(out: Path, results: dict[str, Any], cells: Sequence[Cell]) -> None:
    """Writes results.json, results.md, results.png, per_query.jsonl and reasoning.jsonl."""
    write_whole(out / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write_whole(out / "results.md", render(results))
    if results["sets"]:
        plot(results, out / "results.png")
    per_query = [
        {"model": cell.model, "set": cell.set, "query_id": query, **scores}
        for cell in cells
        for query, scores in cell.per_query.items()
    ]
    reasonings = [
        {"model": cell.model, "set": cell.set, "query_id": query, **reasoning}
        for cell in cells
        for query, reasoning in cell.reasonings.items()
    ]
    for name, rows in (("per_query", per_query), ("reasoning", reasonings)):
        write_whole(out / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_whole(path: Path, text: str) -> None:
    """Writes a whole file or nothing, so that a killed run leaves no half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
