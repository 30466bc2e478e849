"""The results of the suite as Markdown and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.evaluate.tables import markdown_table

MIB = 1 << 20
CELL_HEADER = ("peer", "items", "ours, s (batch)", "peer, s (batch)", "speed-up", "lowest cosine", "rows that differ")
MEMORY_HEADER = ("peer", "items", "ours, MiB (loaded)", "peer, MiB (loaded)", "ours / peer", "lowest cosine")


def render(result: Mapping[str, Any]) -> str:
    """All workloads as Markdown."""
    machine, versions = result["machine"], result["machine"]["versions"]
    parts = [
        f"Model {result['model']}; {machine['cpu']}, {machine['torch_threads']} threads, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, sentence-transformers "
        f"{versions['sentence-transformers']}; {result['repeats']} interleaved repeats after a warm-up, median "
        "(least to greatest); each side at its best batch size."
        + (" Quick run: too small for figures that mean anything." if result["quick"] else "")
    ]
    for name, workload in result["workloads"].items():
        parts += [f"## {name}: {workload['title']}", *_render_workload(workload)]
    return "\n\n".join(parts) + "\n"


def _render_workload(workload: Mapping[str, Any]) -> Iterator[str]:
    if "error" in workload:
        yield f"Not measured: {workload['error']}"
    if "cells" in workload:
        yield markdown_table(CELL_HEADER, [_cell_row(cell) for cell in workload["cells"]])
        for cell in workload["cells"]:
            if "unavailable" in cell:
                yield f"{cell['peer']} is not available: {cell['unavailable']}"
    if "reasoning_tokens" in workload:
        lengths = workload["reasoning_tokens"]
        yield f"Reasoning of {lengths['least']} to {lengths['most']} tokens."
    if "profile" in workload:
        found = workload["profile"]
        yield f"Matrix products take {found['matrix_share']:.1%} of our time under the profiler."
        rows = [[row["operation"], f"{row['share']:.1%}", row["calls"]] for row in found["table"]]
        yield markdown_table(["operation", "share", "calls"], rows)
    if "memory" in workload:
        yield markdown_table(MEMORY_HEADER, [_memory_row(cell) for cell in workload["memory"]])
    if "linearity" in workload:
        rows = [
            [
                row["kind"],
                row["items"],
                _time(row["time"]),
                f"{1000 * row['s_per_item']:.3f}",
                f"{row['relative']:.3f}",
            ]
            for row in workload["linearity"]
        ]
        yield markdown_table(["kind", "items", "s", "ms per item", "relative to the smallest"], rows)


def _memory_row(cell: Mapping[str, Any]) -> list[str]:
    return [
        cell["peer"],
        str(cell["items"]),
        *(
            f"{cell[side]['peak_bytes'] / MIB:.0f} ({cell[side]['loaded_bytes'] / MIB:.0f})"
            for side in ("ours_bytes", "theirs_bytes")
        ),
        f"{cell['ratio']:.2f}",
        f"{cell['lowest_cosine']:.6f}",
    ]


def _cell_row(cell: Mapping[str, Any]) -> list[str]:
    if "unavailable" in cell:
        return [cell["peer"], str(cell["items"]), *["n/a"] * 5]
    up = cell["speedup"]
    return [
        cell["peer"],
        str(cell["items"]),
        *(f"{_time(cell[side])}, {cell[side]['batch_size']}" for side in ("ours", "theirs")),
        f"{up['of_medians']:.2f} ({up['min']:.2f} to {up['max']:.2f})",
        f"{cell['lowest_cosine']:.6f}",
        str(cell["differing_rows"]),
    ]


def _time(times: Mapping[str, Any]) -> str:
    return f"{times['median_s']:.3g} ({times['min_s']:.3g} to {times['max_s']:.3g})"


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Speed-ups of all cells as bars, with the range within a repeat; writes nothing where there are none."""
    from matplotlib.figure import Figure

    bars = [
        (f"{name} vs {cell['peer']}", cell["speedup"])
        for name, workload in result["workloads"].items()
        for cell in workload.get("cells", ())
        if "speedup" in cell
    ]
    if not bars:
        return
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(bars)), layout="constrained")
    axes = figure.subplots()
    middle = [up["of_medians"] for _, up in bars]
    # The ratio of medians may lie outside the range of the ratios by a hair.
    below = [max(0.0, up["of_medians"] - up["min"]) for _, up in bars]
    above = [max(0.0, up["max"] - up["of_medians"]) for _, up in bars]
    drawn = axes.barh([name for name, _ in bars], middle, xerr=[below, above], capsize=3)
    axes.bar_label(drawn, labels=[f"{value:.2f}x" for value in middle], padding=12)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as the peer")
    axes.margins(x=0.15)
    figure.savefig(path, dpi=150)
