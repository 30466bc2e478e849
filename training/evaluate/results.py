"""The results of an evaluation: means, ratios to a baseline, and the files that show them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from searchr3_embed.files import write_json, write_text
from training.evaluate.cells import Cell, EvaluationError, Settings
from training.evaluate.machine import machine_description
from training.evaluate.metrics import NDCG, TREC_MEASURES
from training.evaluate.plots import plot
from training.evaluate.significance import compare_budgets, compare_modes
from training.evaluate.tables import render


def summarise(
    cells: Sequence[Cell],
    settings: Settings,
    baseline: str | None,
    left_out: Mapping[str, Mapping[str, int]] | None = None,
    out_of_domain: Sequence[str] = (),
) -> dict[str, Any]:
    """Puts the cells together: means over the sets, ratios to the baseline, reasoning against direct.

    Args:
        cells: One for every model and set.
        settings: What they were measured with.
        baseline: Label of the row the others are compared with; None takes "teacher" if it is there.
        left_out: Set -> reason -> number of lines or judgements that could not be used.
        out_of_domain: Sets whose means are shown apart.

    Returns:
        ``{"settings", "machine", "baseline", "sets", "left_out", "models", "reasoning_vs_direct",
        "reasoning_vs_budget"}``; ``models`` maps a label to ``{"sets": {set: {...}}, "mean": {...},
        "relative_to_baseline": {set: ratio, "mean": ratio} | None}``. With ``out_of_domain``, ``parts`` maps
        ``"in_domain"`` and ``"out_of_domain"`` to their sets, and each model has a mean under the same names.
    """
    labels = list(dict.fromkeys(cell.model for cell in cells))
    set_names = list(dict.fromkeys(cell.set for cell in cells))
    table = {(cell.model, cell.set): cell for cell in cells}
    if baseline is None and "teacher" in labels:
        baseline = "teacher"
    models: dict[str, Any] = {}
    parts = parts_of(set_names, out_of_domain)
    for label in labels:
        row = [table[label, name] for name in set_names]
        models[label] = {"sets": {cell.set: _figures(cell) for cell in row}, "mean": _mean_figures(row)}
        for part, names in parts.items():
            models[label][part] = _mean_figures([table[label, name] for name in names])
    for label in labels:
        models[label]["relative_to_baseline"] = _ratios(models[label], models[baseline]) if baseline else None
    first = [table[labels[0], name] for name in set_names]
    return {
        "settings": {**asdict(settings), "bm25_stemmer": importlib.util.find_spec("Stemmer") is not None},
        "machine": machine_description(),
        "baseline": baseline,
        "sets": {cell.set: {"queries": cell.queries, "documents": cell.documents} for cell in first},
        "left_out": dict(left_out or {}),
        **({"parts": parts} if parts else {}),
        "models": models,
        "reasoning_vs_direct": compare_modes(table, labels, set_names),
        "reasoning_vs_budget": compare_budgets(table, labels, set_names),
    }


def parts_of(sets: Sequence[str], out_of_domain: Sequence[str]) -> dict[str, list[str]]:
    """The sets of each part that has any; empty where nothing is to be shown apart.

    Raises:
        EvaluationError: A set is marked that is not measured.
    """
    if unknown := [name for name in out_of_domain if name not in sets]:
        raise EvaluationError(
            f"--out-of-domain: {', '.join(unknown)} is not among the sets measured: {', '.join(sets) or 'none'}"
        )
    if not out_of_domain:
        return {}
    parts = {
        "in_domain": [name for name in sets if name not in out_of_domain],
        "out_of_domain": [name for name in sets if name in out_of_domain],
    }
    return {part: names for part, names in parts.items() if names}


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


def write_results(out: Path, results: dict[str, Any], cells: Sequence[Cell]) -> None:
    """Writes results.json, results.md, results.png, per_query.jsonl and reasoning.jsonl."""
    write_json(out / "results.json", results)
    write_text(out / "results.md", render(results))
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
        write_text(out / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
