"""The learning curves of a training run as one picture: every term of the loss, and the dev scores.

    python -m training.shared.curves runs/sft --out losses.png

Reads ``metrics.jsonl``, which a finished run holds, or the state of its newest checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from searchr3_embed.files import replacing
from training.shared.resume import STATE_FILE

# Not worth a picture of their own.
_LEFT_OUT = {"step", "epoch", "learning_rate", "total_flos", "train_loss"}


def read_log(run: Path) -> list[dict[str, Any]]:
    """The logged rows of a run, in order.

    Raises:
        FileNotFoundError: The folder holds neither ``metrics.jsonl`` nor a checkpoint.
    """
    metrics = run / "metrics.jsonl"
    if metrics.exists():
        return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    states = sorted(run.glob(f"checkpoint-*/{STATE_FILE}"), key=lambda path: path.stat().st_mtime)
    if not states:
        raise FileNotFoundError(f"{run} holds neither metrics.jsonl nor a checkpoint; is it the output_dir of a run?")
    return json.loads(states[-1].read_text(encoding="utf-8"))["log_history"]


def series(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Name -> steps and values, for all that was logged more than once."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in _LEFT_OUT and "runtime" not in name and "per_second" not in name:
                steps, values = found.setdefault(name, ([], []))
                steps.append(int(row["step"]))
                values.append(float(value))
    return {name: line for name, line in found.items() if len(line[0]) > 1}


def plot(rows: Sequence[Mapping[str, Any]], path: Path, only: Sequence[str] | None = None) -> None:
    """Draws one small panel a series, thin as logged and thick as a running mean.

    Args:
        rows: As logged.
        path: The picture.
        only: Names of the series to draw, in this order; None draws all.

    Raises:
        ValueError: Nothing was logged twice, or not what ``only`` names.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = series(rows)
    if not lines:
        raise ValueError("nothing was logged more than once; lower logging_steps")
    if missing := [name for name in only or () if name not in lines]:
        raise ValueError(f"{', '.join(missing)}: not logged more than once; there are {', '.join(sorted(lines))}")
    lines = {name: lines[name] for name in only or lines}
    columns = min(4, len(lines))
    height = -(-len(lines) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(3.2 * columns, 2.2 * height), squeeze=False)
    for axis, (name, (steps, values)) in zip(axes.flat, lines.items(), strict=False):
        smooth, mean = [], values[0]
        for value in values:
            mean += 0.2 * (value - mean)
            smooth.append(mean)
        evaluated = name.startswith("eval_")
        axis.plot(steps, values, alpha=1.0 if evaluated else 0.35, linewidth=1, marker="o" if evaluated else None)
        if not evaluated:
            axis.plot(steps, smooth, color="C0")
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(lines) :]:
        axis.set_visible(False)
    figure.tight_layout()
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix(".") or "png", dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    parser = argparse.ArgumentParser(
        prog="python -m training.shared.curves", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("run", type=Path, help="output_dir of a run of training.sft or training.rl")
    parser.add_argument("--out", type=Path, required=True, help="the picture, .png or .svg")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="series to draw (default: all)")
    args = parser.parse_args(argv)
    try:
        plot(read_log(args.run), args.out, args.only)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
