"""The summary of a run as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.rl_environment.agreement import GOAL
from training.evaluate.tables import markdown_table


def render(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    setting, machine = summary["setting"], summary["machine"]
    about = (
        f"Model {setting['model']}, {summary['documents']} documents of {Path(setting['data']).name} (on average "
        f"{summary['tokens_per_document']:.0f} tokens), {setting['steps']} policy steps with AdamW at learning rate "
        f"{setting['learning_rate']:g} and KL weight {setting['beta']:g}, {setting['queries']} queries x "
        f"{setting['group']} rollouts; compared with a full encoding at every step divisible by "
        f"{setting['full_every']}. {machine['cpu']}, {machine['torch_threads']} threads; a full encoding takes "
        f"{summary['seconds_full']:.1f} s."
    )
    name = summary["cheapest_that_meets_the_goal"]
    goal = f"Pearson >= {GOAL['pearson']} and sign agreement >= {100 * GOAL['signs']:.0f} %"
    parts = [
        about,
        _environments(summary),
        f"Cheapest with {goal}: {name}." if name else f"None has {goal}.",
        f"On paper, from these costs, for larger corpora ({summary['rollouts_per_step']} rollouts, same machine):",
        _projection(summary),
    ]
    return "\n\n".join(parts) + "\n"


def _environments(summary: Mapping[str, Any]) -> str:
    header = [
        *("environment", "Pearson", "sign of advantage", "groups that vary", "RMSE", "documents a step", "share"),
        *("mean age", "encoding, s", "times less", "search, s", "graph, s"),
    ]
    rows = [
        [
            row["name"],
            f"{row['pearson']:.4f}",
            f"{100 * row['signs']:.2f} %",
            f"{100 * row['varied']:.0f} %",
            f"{row['rmse']:.5f}",
            f"{row['refreshed']:.0f}",
            f"{100 * row['share_refreshed']:.2f} %",
            f"{row['staleness']:.1f}",
            f"{row['seconds_encoding']:.2f}",
            "" if row["times_less_encoding"] is None else f"{row['times_less_encoding']:.1f}",
            f"{row['seconds_search']:.3f}",
            f"{row['seconds_graph']:.3f}",
        ]
        for row in summary["environments"]
    ]
    return markdown_table(header, rows)


def _projection(summary: Mapping[str, Any]) -> str:
    header = ["documents", "full encoding, s", "encoding, s", "search, s", "graph, s", "times less", "memory, GiB"]
    rows = [
        [
            f"{row['documents']:.0e}",
            f"{row['seconds_full']:.3g}",
            f"{row['seconds_encoding']:.2f}",
            f"{row['seconds_search']:.3g}",
            f"{row['seconds_graph']:.2f}",
            f"{row['times_less']:.0f}",
            f"{row['memory_gib']:.3g}",
        ]
        for row in summary["projection"]
    ]
    return markdown_table(header, rows)


def plot(summary: Mapping[str, Any], path: Path) -> None:
    """Left: agreement against documents encoded per step. Right: agreement over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    rows = summary["environments"]
    for refresh in dict.fromkeys((row["refresh"], row["correct_drift"]) for row in rows):
        points = sorted(
            (row["refreshed"], row["signs"]) for row in rows if (row["refresh"], row["correct_drift"]) == refresh
        )
        label = refresh[0] + ("" if refresh[1] else ", uncorrected")
        left.plot(*zip(*points, strict=True), marker="o", label=label)
    for row in rows:
        right.plot([r["step"] for r in row["by_step"]], [r["signs"] for r in row["by_step"]], label=row["name"])
    for axes, title in ((left, "documents encoded per step"), (right, "policy step")):
        axes.axhline(GOAL["signs"], color="grey", linewidth=0.8, linestyle="--")
        axes.set_xlabel(title)
        axes.set_ylabel("advantages with the right sign")
        axes.legend(frameon=False, fontsize=7)
    figure.savefig(path)
