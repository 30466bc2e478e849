"""What each part of stage 1 is worth: short trainings, each with one part left out, side by side.

    python -m training.sft.ablation --config training/configs/single-mini.yaml --data DATA/train --eval DATA/eval \\
        --out runs/ablation --steps 60 -- --per_device_train_batch_size 32

What follows ``--`` goes to every run of ``training.sft``. All are measured on the small lists of the evaluation sets.
When the same command is given again, finished runs and measurements are kept and an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from searchr3_embed import interruption
from searchr3_embed.files import write_text
from training.evaluate.cells import Settings
from training.evaluate.metrics import NDCG
from training.evaluate.models import DTYPES
from training.evaluate.run import evaluate
from training.evaluate.tables import markdown_table
from training.sft import config as sft_config
from training.sft import train as sft

logger = logging.getLogger("training.sft.ablation")

# What is changed, by the name of the row. A row that changes nothing of the configuration is left out.
CHANGES: dict[str, dict[str, str]] = {
    "all": {},
    "without L_SFT": {"language_weight": "0"},
    "without L_KL": {"kl_weight": "0"},
    "with L_KL": {"kl_weight": "0.1"},
    "without L_InfoNCE": {"contrast_weight": "0"},
    "without L_triplet": {"triplet_weight": "0"},
    "without the teacher": {"distil_weight": "0", "relation_weight": "0", "distil_reasoning_weight": "0"},
    "target reasoning only": {"own_reasoning": "0"},
    "own reasoning only": {"own_reasoning": "1", "target_contrast": "false"},
}


def folder_name(row: str) -> str:
    """The name of a row's folder."""
    return row.replace(" ", "-")


def run(
    config: Path,
    data: Path,
    eval_folders: Sequence[Path],
    out: Path,
    steps: int,
    further: Sequence[str],
    dtype: str = "auto",
) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """Trains and measures every row.

    Args:
        config: Settings of ``training.sft``.
        data: Folder of the training sources.
        eval_folders: BEIR folders with small lists; their queries are kept out of the training.
        out: Folder for the runs, the measurements and the table.
        steps: Steps of every run.
        further: Further arguments of every run, as on the command line.
        dtype: Of the weights while they are measured, see ``training.evaluate``.

    Returns:
        Row -> mode -> set, or "mean" -> nDCG@10.
    """
    models = {"start": ""}
    unchanged = None
    for row, changes in CHANGES.items():
        folder = out / folder_name(row)
        arguments = ["--config", str(config), "--data", str(data), "--output_dir", str(folder)]
        arguments += ["--exclude", *map(str, eval_folders), "--max_steps", str(steps), "--eval_strategy", "no"]
        arguments += [*further, *(part for name, value in changes.items() for part in (f"--{name}", value))]
        args, model_args = sft_config.parse("", arguments)
        if row == "all":
            models["start"], unchanged = str(model_args.model_name_or_path), args.loss
        elif args.loss == unchanged:
            logger.info("%s: as in %s already", row, config)
            continue
        logger.info("%s", row)
        models[row] = str(sft.train(args, model_args))
    specs = [f"{folder_name(row)}={source}" for row, source in models.items()]
    settings = Settings(small=True, dtype=dtype)
    results = evaluate(specs, eval_folders, settings=settings, out=out / "eval", resume=True, progress=True)
    scores: dict[str, Mapping[str, Mapping[str, float]]] = {}
    for row in models:
        scores[row] = {
            mode: {
                **{name: cell[NDCG] for name, cell in results["models"][label]["sets"].items()},
                "mean": results["models"][label]["mean"][NDCG],
            }
            for mode, label in (("direct", f"{folder_name(row)}:direct"), ("reasoning", f"{folder_name(row)}:reason"))
        }
    write_text(out / "ablation.md", table(scores, steps))
    return scores


def table(scores: Mapping[str, Mapping[str, Mapping[str, float]]], steps: int) -> str:
    """The rows as a Markdown table: both means, and what a row loses against "all"."""
    rows = []
    for row, modes in scores.items():
        cells = []
        for mode in ("direct", "reasoning"):
            mean = modes[mode]["mean"]
            cells.append(f"{mean:.4f}" if row == "all" else f"{mean:.4f} ({mean - scores['all'][mode]['mean']:+.4f})")
        rows.append([row, *cells])
    about = f"nDCG@10 after {steps} steps, mean of the small lists; in brackets the difference to all terms."
    return f"{about}\n\n{markdown_table(['', 'direct', 'reasoning'], rows)}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    parser = argparse.ArgumentParser(
        prog="python -m training.sft.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="settings of training.sft")
    parser.add_argument("--data", type=Path, required=True, help="folder of the training sources")
    parser.add_argument("--eval", type=Path, nargs="+", required=True, help="BEIR folders with small lists")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, measurements and ablation.md")
    parser.add_argument("--steps", type=int, default=60, help="steps of every run (default: 60)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights while they are measured")
    parser.add_argument("further", nargs="*", help="after --: further arguments of every run")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        scores = run(args.config, args.data, args.eval, args.out, args.steps, args.further, args.dtype)
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(scores, args.steps), end="")
    return 0


if __name__ == "__main__":
    sys.exit(interruption.run(main, "interrupted; the same command goes on from there"))
