"""How fast is it? Every workload against its peers, side by side in one process.

    python -m benchmarks --data DATA/eval --out results

Each comparison first checks that the sides compute the same vectors (cosine >= 0.9999), which warms them up; then they
take turns. Results are written after every workload, so that an interrupted run loses only one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.memory import ProcessError
from benchmarks.setting import FULL, QUICK, Setting
from benchmarks.timing import DisagreementError
from benchmarks.workloads import WORKLOADS
from searchr3_embed.checkpoint import CheckpointError
from training.data.beir import DataError
from training.evaluate.report import environment


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    listing = "\n".join(f"  {name:4} {title}" for name, (title, _) in WORKLOADS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"workloads:\n{listing}\n\n"
        "first try:     python -m benchmarks --data DATA/eval --out results --quick\n"
        "one workload:  python -m benchmarks --data DATA/eval --out results --only W3\n"
        "\nA full run takes hours on two cores. The GPU has a script of its own: python -m benchmarks.gpu --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of BEIR-layout folders, among them scifact and perspectrum"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for results.json, results.md and results.png, made if missing"
    )
    parser.add_argument(
        "--only", nargs="+", default=list(WORKLOADS), metavar="W", help="workloads to run (default: all)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side, at least 1 (default: 5)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--model", default="searchr3", help="alias, folder or hub id (default: searchr3)")
    parser.add_argument("--documents", type=int, help="at most so many documents in W4 and W6 (default: all)")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="Python whose processes W6 measures, with searchr3-embed in its environment (default: this one, which "
        "also has what training needs, and libraries that find it load it)",
    )
    parser.add_argument("--quick", action="store_true", help="a few texts only: does it run? Its times mean nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 1 when a workload could not be measured, 2 for bad input."""
    parser = arguments()
    args = parser.parse_args(argv)
    if unknown := [name for name in args.only if name not in WORKLOADS]:
        parser.error(f"no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    for name in ("threads", "documents"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            sizes = QUICK if args.quick else FULL
            if args.documents:
                sizes = dataclasses.replace(sizes, documents=args.documents)
            setting = Setting(args.data, args.model, Path(scratch), sizes, args.repeats, python=args.python)
            _ = setting.embedder  # a model that can't be loaded is no fault of a workload
        except (DataError, CheckpointError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        args.out.mkdir(parents=True, exist_ok=True)
        result = run(setting, [name for name in WORKLOADS if name in args.only], args.out, args.quick)
    print(report.render(result), end="")
    return 1 if any("error" in workload for workload in result["workloads"].values()) else 0


def run(setting: Setting, names: Sequence[str], out: Path, quick: bool = False) -> dict[str, Any]:
    """Runs workloads and writes the results after each.

    A workload whose sides disagree, or whose texts are missing, is recorded with the reason, and the next one runs.
    """
    result: dict[str, Any] = {
        "model": setting.model,
        "repeats": setting.repeats,
        "quick": quick,
        "environment": environment(),
        "workloads": {},
    }
    for number, name in enumerate(names, start=1):
        title, workload = WORKLOADS[name]
        print(f"[{number}/{len(names)}] {name}: {title}", file=sys.stderr)
        try:
            found = workload(setting)
        except (DisagreementError, DataError, ProcessError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            found = {"error": str(error)}
        result["workloads"][name] = {"title": title, **found}
        write(result, out)
    return result


def write(result: dict[str, Any], out: Path) -> None:
    """Writes results.json, results.md and, once there is a speed-up, results.png."""
    # Written apart and moved, so that a kill in between leaves the former file whole.
    part = out / "results.json.part"
    part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    part.replace(out / "results.json")
    (out / "results.md").write_text(report.render(result), encoding="utf-8")
    report.plot(result, out / "results.png")


if __name__ == "__main__":
    sys.exit(main())
