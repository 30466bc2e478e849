"""Thinking on a GPU: a random model of Qwen2.5-1.5B's shape against its peers and the memory-bandwidth floor.

    python -m benchmarks.gpu --data DATA/eval --out results

Decoding reads all weights once per step, so no engine is faster than (model calls x bytes of weights / bandwidth); the
bandwidth is measured with a large copy. W1 has a short system prompt, W2 one of 120 tokens; rows end after 5 to 60
tokens. In half precision rounding changes tokens and vectors, so there the sides need a cosine of 0.99 only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import report, steered
from benchmarks.cells import compare
from benchmarks.fidelity import sample_queries
from benchmarks.peers import generate_then_embed, generate_with_states
from benchmarks.setting import stock_lm
from benchmarks.timing import LEAST_COSINE, DisagreementError
from benchmarks.workloads import PEER_A, PEER_B, our_queries, peer_queries
from searchr3_embed import ReasoningEmbedder
from searchr3_embed.files import write_json, write_text
from training.data.lines import DataError
from training.evaluate.machine import machine_description

SHAPES = {"qwen2.5-1.5b": steered.QWEN_1_5B, "20m": steered.Shape(), "tiny": steered.Shape(64, 2, 2, 1, 128)}
SYSTEM_TOKENS = {"W1": 16, "W2": 120}
HALF_COSINE = 0.99


def copy_bandwidth(device: torch.device, megabytes: int = 1024, repeats: int = 10) -> float:
    """Bytes per second, read and written, of a copy within the device's memory: the best of several."""
    source = torch.ones(megabytes << 18, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(repeats):
        _finish(device)
        started = time.perf_counter()
        target.copy_(source)
        _finish(device)
        best = min(best, time.perf_counter() - started)
    return 2 * source.numel() * source.element_size() / best


def read_bytes(model: Any) -> int:
    """Bytes of the weights that one step reads: all but the input embeddings, of which it takes a few rows."""
    inputs = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is inputs
    total = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return int(total) - (0 if tied else inputs.numel() * inputs.element_size())


def count_calls(embedder: ReasoningEmbedder, texts: list[str], batch_size: int) -> tuple[int, int]:
    """Forward passes that thinking about the texts takes, and the tokens written, embed tokens included."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = embedder.causal_lm.base_model.register_forward_pre_hook(count)
    try:
        traces = embedder.reason(texts, batch_size=batch_size)
    finally:
        handle.remove()
    return calls, sum(trace.reasoning_tokens + 1 for trace in traces)


def measure(
    folder: Path, texts: list[str], device: str, batch_sizes: Sequence[int], repeats: int, title: str, bandwidth: float
) -> dict[str, Any]:
    """One workload: the cells of both peers, and ours against the floor.

    Raises:
        DisagreementError: A peer computes something else.
    """
    embedder = ReasoningEmbedder(str(folder), device=device, on_truncate="ignore")
    model = stock_lm(folder, device)
    least = LEAST_COSINE if embedder.causal_lm.dtype == torch.float32 else HALF_COSINE
    peers = [
        peer_queries(name, peer, model, embedder, texts, batch_sizes)
        for name, peer in ((PEER_A, generate_then_embed), (PEER_B, generate_with_states))
    ]
    ours = our_queries(embedder, texts, batch_sizes)
    cells = compare(title, ours, peers, len(texts), repeats, least)
    times = cells[0]["ours"]
    calls, tokens = count_calls(embedder, texts, times["batch_size"])
    floor = calls * read_bytes(embedder.causal_lm) / bandwidth
    return {
        "cells": cells,
        "floor": {
            "model_calls": calls,
            "weight_bytes": read_bytes(embedder.causal_lm),
            "copy_bytes_per_s": bandwidth,
            "floor_s": floor,
            "time_over_floor": times["median_s"] / floor,
            "tokens": tokens,
            "tokens_per_s": tokens / times["median_s"],
        },
    }


def render(result: dict[str, Any]) -> str:
    """The cells, and a line per workload on the floor."""
    lines = [report.render(result)]
    for name, workload in result["workloads"].items():
        if "floor" in workload:
            found = workload["floor"]
            lines.append(
                f"{name}: {found['tokens_per_s']:.0f} tokens/s; {found['model_calls']} model calls, floor "
                f"{found['floor_s']:.3g} s at {found['copy_bytes_per_s'] / 1e9:.0f} GB/s; our time is "
                f"{found['time_over_floor']:.2f} times that.\n"
            )
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of BEIR-layout folders to draw queries from")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md, made if missing")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-1.5b", help="of the random model")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try it out (default: cuda)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="on a CPU always float32")
    parser.add_argument("--queries", type=int, default=256, help="default: 256")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 256], help="default: 64 256")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side, at least 1 (default: 5)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 1 when sides disagree, 2 for bad input."""
    parser = arguments()
    args = parser.parse_args(argv)
    if min(args.repeats, args.queries, *args.batch_sizes) < 1:
        parser.error("--repeats, --queries and --batch-sizes must be at least 1")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("error: torch sees no CUDA device; --device cpu --shape tiny tries the script out", file=sys.stderr)
        return 2
    try:
        texts = sample_queries([args.data], args.queries)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    device = torch.device(args.device)
    result: dict[str, Any] = {
        "model": f"random {args.shape}, {'float32' if device.type == 'cpu' else args.dtype}, {device.type}",
        "repeats": args.repeats,
        "quick": False,
        "machine": machine_description(),
        "workloads": {},
    }
    bandwidth = copy_bandwidth(device, 64 if device.type == "cpu" else 1024)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, system_tokens in SYSTEM_TOKENS.items():
        title = f"queries, system prompt of {system_tokens} tokens, 5 to 60 tokens of reasoning"
        print(f"{name}: {title}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch:
            dtype = "float32" if device.type == "cpu" else args.dtype
            folder = steered.save(Path(scratch), texts, SHAPES[args.shape], system_tokens, dtype)
            try:
                found = measure(folder, texts, args.device, args.batch_sizes, args.repeats, name, bandwidth)
            except DisagreementError as error:
                print(f"error: {name}: {error}", file=sys.stderr)
                found = {"error": str(error)}
        result["workloads"][name] = {"title": title, **found}
        write_json(args.out / "gpu.json", result)
        write_text(args.out / "gpu.md", render(result))
    print(render(result), end="")
    return 1 if any("error" in workload for workload in result["workloads"].values()) else 0


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
