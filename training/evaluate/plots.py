"""The results of an evaluation as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from searchr3_embed.files import replacing
from training.evaluate.metrics import NDCG


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
    with replacing(path) as file:
        figure.savefig(file, format="png")
