"""Adaptive thinking: quality and time between "never think" and "always think".

    python -m training.evaluate --model searchr3 --data DATA/eval --out results
    python -m benchmarks.adaptive --results results --data DATA/eval --out adaptive

The scores of every query, direct and after reasoning, come from a run of ``training.evaluate`` with the same model.
The gate in the checkpoint orders the queries; for every share of them that is thought about, the curve shows the mean
nDCG@10 over the sets and the time of a single query, which is that of the direct embedding for all plus that of the
reasoning for the share. Thinking about a random share moves along the straight line between the two ends; the gate is
worth having where it is above that line. Times are medians of single calls in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from training.beir import BeirData, DataError, beir_folders, read_beir
from training.report import NDCG, environment, paired_test, write_whole

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def read_scores(results: Path, label: str | None) -> dict[str, dict[str, dict[str, float]]]:
    """nDCG@10 from ``per_query.jsonl``: "direct" and "reason" -> set -> query -> score.

    Raises:
        DataError: The file is missing, or does not hold both modes of the model.
    """
    path = results / "per_query.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: no such file; --results is the --out folder of training.evaluate")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = list(
        dict.fromkeys(row["model"].removesuffix(":reason") for row in rows if row["model"].endswith(":reason"))
    )
    name = label or (names[0] if names else None)
    found: dict[str, dict[str, dict[str, float]]] = {"direct": {}, "reason": {}}
    for row in rows:
        before, _, mode = row["model"].rpartition(":")
        if before == name and mode in found:
            found[mode].setdefault(row["set"], {})[row["query_id"]] = row[NDCG]
    if not found["direct"] or {k: set(v) for k, v in found["direct"].items()} != {
        k: set(v) for k, v in found["reason"].items()
    }:
        raise DataError(f"{path}: both {name}:direct and {name}:reason are needed; it holds {names} with reasoning")
    return found


def latencies(embedder: Any, texts: Sequence[str], repeats: int) -> tuple[float, float]:
    """Median milliseconds of a single query, direct and with reasoning, called in turn."""
    spent: dict[bool, list[float]] = {False: [], True: []}
    for repeat in tqdm(range(repeats + 1), desc="Timing", unit="round", file=sys.stderr):
        for i, text in enumerate(texts):
            for reason in (False, True) if (i + repeat) % 2 else (True, False):
                started = time.perf_counter()
                embedder.encode_query(text, reason=reason, show_progress_bar=False)
                if repeat:  # the first round warms up
                    spent[reason].append(1000 * (time.perf_counter() - started))
    return float(np.median(spent[False])), float(np.median(spent[True]))


def curve(
    expected: Mapping[str, np.ndarray], direct: Mapping[str, np.ndarray], reason: Mapping[str, np.ndarray],
    threshold: float, milliseconds: tuple[float, float],
) -> dict[str, Any]:  # fmt: skip
    """Quality and time at every share of queries that are thought about.

    Args:
        expected: Set -> expected gains of its queries, shape (queries,).
        direct: Set -> nDCG@10 of the same queries without reasoning.
        reason: Set -> and with it.
        threshold: Of the gate.
        milliseconds: Of a direct query and of one with reasoning.

    Returns:
        ``points`` (share thought about, ms, nDCG@10 as mean of the sets, and how much of it is above the line), the
        point of the gate (``gate``), that of both ends (``never``, ``always``), the shares by set at the gate, and a
        paired test of the gate against both ends over all queries.
    """
    names = list(expected)
    signal = np.concatenate([expected[name] for name in names])
    plain = np.concatenate([direct[name] for name in names])
    thought = np.concatenate([reason[name] for name in names])
    weight = np.concatenate([np.full(len(expected[name]), 1 / len(expected[name]) / len(names)) for name in names])
    low, high = float(weight @ plain), float(weight @ thought)

    def point(chosen: np.ndarray) -> dict[str, float]:
        share = float(weight @ chosen)
        quality = float(weight @ np.where(chosen, thought, plain))
        spent = milliseconds[0] + share * milliseconds[1]
        # The line in time: from never (direct alone) to always (which skips the direct embedding).
        line = low + (high - low) * (spent - milliseconds[0]) / (milliseconds[1] - milliseconds[0])
        return {"share": share, "ms": spent, NDCG: quality, "above_line": quality - line}

    order = np.argsort(-signal, kind="stable")
    shares = np.cumsum(weight[order])
    points = [point(np.isin(np.arange(len(signal)), order[shares <= share])) for share in SHARES]
    chosen = signal > threshold
    adaptive = np.where(chosen, thought, plain)
    return {
        "never": {"share": 0.0, "ms": milliseconds[0], NDCG: low},
        "always": {"share": 1.0, "ms": milliseconds[1], NDCG: high},
        "points": points,
        "gate": point(chosen),
        "share_by_set": {name: float((expected[name] > threshold).mean()) for name in names},
        "against_never": paired_test(list(zip(adaptive.tolist(), plain.tolist(), strict=True))),
        "against_always": paired_test(list(zip(adaptive.tolist(), thought.tolist(), strict=True))),
    }


def measure(
    embedder: Any, sets: Sequence[BeirData], scores: Mapping[str, Any], timed: int, repeats: int
) -> dict[str, Any]:
    """The curve of one model on all sets; times from ``timed`` queries spread over them.

    Raises:
        DataError: The scores are not those of these sets.
    """
    expected, direct, reason, sample = {}, {}, {}, []
    for data in tqdm(sets, desc="Sets", unit="set", file=sys.stderr):
        known = scores["direct"].get(data.name, {})
        if set(known) != set(data.queries):
            raise DataError(
                f"set {data.name!r}: --results holds {len(known)} queries of it, --data {len(data.queries)}"
            )
        texts = list(data.queries.values())
        vectors = embedder.encode_query(texts, reason=False, batch_size=64, show_progress_bar=False)
        expected[data.name] = embedder.gate.expected_gain(torch.from_numpy(vectors)).numpy()
        direct[data.name] = np.array([known[query] for query in data.queries])
        reason[data.name] = np.array([scores["reason"][data.name][query] for query in data.queries])
        sample += texts[:: max(1, len(texts) * len(sets) // timed)]
    return curve(expected, direct, reason, embedder.gate.threshold, latencies(embedder, sample, repeats))


def render(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    env = result["environment"]
    lines = [
        f"Model {result['model']}; {env['cpu']}, {env['torch_threads']} threads; single queries, medians.",
        "",
        "| thinks about | ms a query | mean nDCG@10 | above the straight line |",
        "|---|---:|---:|---:|",
        f"| none | {result['never']['ms']:.1f} | {result['never'][NDCG]:.4f} | |",
    ]
    rows = [(f"the best {row['share']:.0%}", row) for row in result["points"]]
    rows.append((f'**"auto": {result["gate"]["share"]:.0%}**', result["gate"]))
    for name, row in sorted(rows, key=lambda pair: pair[1]["share"]):
        lines.append(f"| {name} | {row['ms']:.1f} | {row[NDCG]:.4f} | {row['above_line']:+.4f} |")
    lines += [f"| all | {result['always']['ms']:.1f} | {result['always'][NDCG]:.4f} | |", ""]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in result["share_by_set"].items())
    lines.append(f'"auto" thinks about: {shares}.')
    for name in ("never", "always"):
        test = result[f"against_{name}"]
        lines.append(f"Against {name}, all queries: {test['difference']:+.4f}, p = {test['p_value']:.2g}.")
    return "\n".join(lines) + "\n"


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Mean nDCG@10 against milliseconds a query."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    ends = [result["never"], result["always"]]
    axes.plot([row["ms"] for row in ends], [row[NDCG] for row in ends], "--o", color="grey", label="never - always")
    axes.plot([row["ms"] for row in result["points"]], [row[NDCG] for row in result["points"]], marker=".",
              label="best share by the gate")  # fmt: skip
    axes.plot(result["gate"]["ms"], result["gate"][NDCG], "*", markersize=12, label='"auto"')
    axes.set_xlabel("ms a query")
    axes.set_ylabel("mean nDCG@10")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adaptive", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="searchr3", help="alias, folder or hub id (default: searchr3)")
    parser.add_argument("--results", type=Path, required=True, help="--out folder of training.evaluate, same model")
    parser.add_argument("--label", help="what the model is called there (default: the first with reasoning)")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="BEIR-layout folders, or folders of them")
    parser.add_argument("--small", action="store_true", help="the small lists, if the results are theirs")
    parser.add_argument("--split", default="test", help="judgements of the results (default: test)")
    parser.add_argument("--timed", type=int, default=60, help="queries that are timed (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="times that each is timed (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for adaptive.json, .md and .png")
    args = parser.parse_args(argv)
    if args.timed < 1 or args.repeats < 1:
        parser.error(f"--timed and --repeats must be at least 1, got {args.timed} and {args.repeats}")

    from searchr3_embed import ReasoningEmbedder

    try:
        scores = read_scores(args.results, args.label)
        sets = [read_beir(folder, args.small, args.split) for folder in beir_folders(args.data)]
        embedder = ReasoningEmbedder(args.model, on_truncate="ignore")
        if embedder.gate is None:
            raise DataError(f"--model {args.model}: it has no adaptive.json; run python -m training.calibrate first")
        result = measure(embedder, sets, scores, args.timed, args.repeats)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result |= {"model": args.model, "environment": environment()}
    args.out.mkdir(parents=True, exist_ok=True)
    write_whole(args.out / "adaptive.json", json.dumps(result, indent=2) + "\n")
    write_whole(args.out / "adaptive.md", render(result))
    plot(result, args.out / "adaptive.png")
    print(render(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
