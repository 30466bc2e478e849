"""The command line of ``python -m benchmarks.rl_environment``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.rl_environment import __doc__ as package_doc
from benchmarks.rl_environment.agreement import summarise
from benchmarks.rl_environment.report import plot, render
from benchmarks.rl_environment.setting import Setting, draw
from benchmarks.rl_environment.trajectory import measure
from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoint import CheckpointError
from searchr3_embed.files import write_json, write_text
from training.data.lines import DataError
from training.rl.corpus.which_to_reencode import STRATEGIES


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rl_environment", description=(package_doc or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="BEIR-layout folder: its corpus, never its queries")
    parser.add_argument("--train-records", type=Path, required=True, help="JSONL(.gz) of queries with positives in it")
    parser.add_argument("--model", default="searchr3", help="alias, folder or hub id (default: searchr3)")
    parser.add_argument("--steps", type=int, default=100, help="policy steps (default: 100)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 256], help="default: 64 256")
    parser.add_argument("--refresh", nargs="+", choices=sorted(STRATEGIES),
                        default=["impact", "neighbourhood", "none"],
                        help="refresh strategies (default: impact neighbourhood none)")  # fmt: skip
    parser.add_argument("--max-age", type=int, default=0, help="age in steps that counts as fresh (default: 0)")
    parser.add_argument("--uncorrected", action="store_true", help="measure all without drift correction as well")
    parser.add_argument("--documents", type=int, help="a part of the corpus that holds the positives (default: all)")
    parser.add_argument("--document-tokens", type=int, default=200, help="most tokens of a document (default: 200)")
    parser.add_argument("--full-every", type=int, default=10, help="steps between full encodings (default: 10)")
    parser.add_argument("--queries", type=int, default=8, help="queries a step (default: 8)")
    parser.add_argument("--group", type=int, default=8, help="rollouts a query (default: 8)")
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="default: 2e-5")
    parser.add_argument("--beta", type=float, default=0.02, help="weight of the KL to the start (default: 0.02)")
    parser.add_argument("--temperature", type=float, default=1.0, help="default: 1.0")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--save-every", type=int, default=10, help="steps between states to go on from (default: 10)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    parser.add_argument("--out", type=Path, required=True, help="folder for environment.json, .md and .png")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 2 for bad input."""
    parser = arguments()
    args = parser.parse_args(argv)
    for name in ("steps", "document_tokens", "full_every", "queries", "save_every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.group < 2:
        parser.error(f"--group must be at least 2, or there is nothing to compare with, got {args.group}")
    if args.beta < 0:
        parser.error(f"--beta must be at least 0, got {args.beta}")
    if min(*args.budgets, args.max_age) < 0:
        parser.error(f"--budgets and --max-age must be at least 0, got {args.budgets} and {args.max_age}")
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    setting = Setting(
        data=str(args.data), records=str(args.train_records), model=args.model, steps=args.steps,
        documents=args.documents, document_tokens=args.document_tokens, full_every=args.full_every,
        queries=args.queries, group=args.group, learning_rate=args.learning_rate, beta=args.beta,
        temperature=args.temperature, seed=args.seed, environments=_environments(args),
    )  # fmt: skip
    try:
        corpus = draw(args.data, args.train_records, args.documents, (args.steps + 1) * args.queries, args.seed)
        embedder = ReasoningEmbedder(args.model, device=args.device, on_truncate="ignore")
        result = measure(embedder, setting, corpus, args.out, args.save_every)
    except (DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    summary = summarise(setting, result, len(corpus[0]), embedder.causal_lm.config.hidden_size)
    write_json(args.out / "environment.json", summary)
    write_text(args.out / "environment.md", render(summary))
    plot(summary, args.out / "rl_environment.png")
    print(render(summary))
    return 0


def _environments(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The environments by name: every refresh strategy with every budget."""
    environments: dict[str, dict[str, Any]] = {}
    for corrected in (True, False) if args.uncorrected else (True,):
        for refresh in args.refresh:
            fixed = refresh in ("none", "all")
            for budget in (0,) if fixed else args.budgets:
                name = refresh + ("" if fixed else f"-{budget}") + ("" if corrected or fixed else "-uncorrected")
                fields = {"refresh": refresh, "budget": budget, "max_age": args.max_age, "correct_drift": corrected}
                environments.setdefault(name, fields)
    return environments
