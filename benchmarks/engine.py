"""How fast is the engine? Two comparisons on real texts, both sides in one run, taking turns.

    python -m benchmarks.engine --queries DATA/eval --documents DATA/eval/scifact --out results

* Queries: ``encode_query`` (think and embed in one pass, rows leave when they finish) against what transformers
  offers: ``generate`` in batches (left padding, greedy, same budget, the embed token as end of sequence), then a
  second forward pass over prompt + reasoning + token for the hidden state.
* Documents: ``encode_document`` against the stock SentenceTransformer on the same checkpoint, saved by
  ``save_pretrained``.

Before a time is reported, the two sides must agree: cosine >= 0.9999 for every row with the same token ids; rows
whose reasoning differs (float rounding at a near-tie) are counted and stated. Both sides sort by length and get the
same batch sizes. One untimed pass of each goes first; then every repeat times each side once, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList

from benchmarks.fidelity import cosines, embeddings, forward_states, sample_queries
from training.beir import DataError, read_beir

if TYPE_CHECKING:
    from searchr3_embed import ReasoningEmbedder

LEAST_COSINE = 0.9999


class DisagreementError(RuntimeError):
    """The two sides of a comparison do not compute the same thing, so their times mean nothing."""


def generate_then_embed(
    embedder: ReasoningEmbedder, texts: Sequence[str], batch_size: int, max_reasoning_tokens: int | None = None
) -> tuple[list[list[int]], np.ndarray]:
    """The reference in plain transformers: ``generate`` on left-padded batches, then a second forward pass.

    ``generate`` derives position ids from the attention mask, so left padding is safe for absolute positions too.

    Returns:
        Reasoning ids per text (embed token not included), and the normalised embeddings (texts, d).
    """
    conversation = embedder.conversation
    model: Any = embedder.causal_lm
    budget = conversation.check_budget(max_reasoning_tokens)
    prompts = conversation.reasoning_ids(texts, max_reasoning_tokens)
    stops = [conversation.embed_token_id, *stop_tokens(embedder)]
    distinct = conversation.prompts.distinct_tokens
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    reasonings: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order) if budget else 0, batch_size):
        rows = order[start : start + batch_size]
        width = max(len(prompts[row]) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, width - len(prompts[row]) :] = torch.tensor(prompts[row])
            mask[place, width - len(prompts[row]) :] = 1
        with torch.inference_mode():
            written = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,  # released checkpoints carry sampling defaults of their chat model
                max_new_tokens=budget,
                eos_token_id=stops,
                pad_token_id=stops[0],
                logits_processor=LogitsProcessorList([DistinctTokens(width)] if distinct else []),
            )[:, width:].tolist()
        for row, tokens in zip(rows, written, strict=True):
            end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
            reasonings[row] = tokens[:end]
    turns = [[*prompt, *ids, stops[0]] for prompt, ids in zip(prompts, reasonings, strict=True)]
    return reasonings, forward_states(model, turns, batch_size)


class DistinctTokens(LogitsProcessor):
    """Bars every token that a row has generated already, as the engine does for checkpoints that ask for it."""

    def __init__(self, prompt_width: int) -> None:
        self.prompt_width = prompt_width

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores with the generated tokens at minus infinity, shape (rows, vocabulary)."""
        barred = scores.scatter(1, input_ids[:, self.prompt_width :], float("-inf"))
        return cast(torch.FloatTensor, barred)


def stop_tokens(embedder: ReasoningEmbedder) -> list[int]:
    """Ids that end a turn besides the embed token, as the model's own generation settings name them."""
    ids = embedder.causal_lm.generation_config.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def compare_queries(
    embedder: ReasoningEmbedder,
    queries: list[str],
    batch_sizes: Sequence[int],
    repeats: int,
    max_reasoning_tokens: int | None = None,
) -> dict[str, Any]:
    """Engine against generate + second forward pass, for each batch size.

    Raises:
        DisagreementError: Embeddings of the same tokens differ.
    """
    cells = []
    for batch_size in batch_sizes:
        # The untimed pass: it warms both sides up and shows that they agree.
        traces = embedder.reason(queries, batch_size=batch_size, max_reasoning_tokens=max_reasoning_tokens)
        reference_ids, reference = generate_then_embed(embedder, queries, batch_size, max_reasoning_tokens)
        same = np.array([t.reasoning_ids == ids for t, ids in zip(traces, reference_ids, strict=True)])
        agreement = _agreement(embeddings(traces), reference, same, f"queries, batch size {batch_size}")
        agreement["reasoning_tokens_per_query"] = float(np.mean([trace.reasoning_tokens for trace in traces]))
        agreement["embed_token_share"] = float(np.mean([t.finish_reason == "embed_token" for t in traces]))
        cells.append({"batch_size": batch_size, **agreement})
    sides: dict[tuple[int, str], Callable[[], Any]] = {}
    for size in batch_sizes:
        sides[size, "engine"] = partial(
            embedder.encode_query,
            queries,
            batch_size=size,
            show_progress_bar=False,
            max_reasoning_tokens=max_reasoning_tokens,
        )
        sides[size, "reference"] = partial(generate_then_embed, embedder, queries, size, max_reasoning_tokens)
    return _compare("queries", len(queries), cells, sides, repeats)


def compare_documents(
    embedder: ReasoningEmbedder, documents: list[str], batch_sizes: Sequence[int], repeats: int
) -> dict[str, Any]:
    """``encode_document`` against the stock SentenceTransformer on the saved folder, for each batch size.

    Raises:
        DisagreementError: Embeddings differ.
    """
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as folder:
        embedder.save_pretrained(folder)
        stock = SentenceTransformer(folder, device=str(embedder.device))
        cells = []
        for size in batch_sizes:
            ours = embedder.encode_document(documents, batch_size=size, show_progress_bar=False)
            theirs = stock.encode(documents, batch_size=size, show_progress_bar=False)
            same = np.ones(len(documents), dtype=bool)
            cells.append({"batch_size": size, **_agreement(ours, theirs, same, f"documents, batch size {size}")})
        sides: dict[tuple[int, str], Callable[[], Any]] = {}
        for size in batch_sizes:
            options: dict[str, Any] = {"batch_size": size, "show_progress_bar": False}
            sides[size, "engine"] = partial(embedder.encode_document, documents, **options)
            sides[size, "reference"] = partial(stock.encode, documents, **options)
        return _compare("documents", len(documents), cells, sides, repeats)


def _agreement(ours: np.ndarray, theirs: np.ndarray, same: np.ndarray, what: str) -> dict[str, Any]:
    if not same.any():
        raise DisagreementError(f"{what}: no row has the same token ids on both sides")
    lowest = float(cosines(ours[same], theirs[same]).min())
    if not lowest >= LEAST_COSINE:  # a NaN must not pass
        raise DisagreementError(f"{what}: cosine {lowest:.6f} between the sides, at least {LEAST_COSINE} is required")
    return {"rows": len(same), "differing_rows": int((~same).sum()), "lowest_cosine": lowest}


def _compare(
    name: str,
    rows: int,
    cells: list[dict[str, Any]],
    sides: Mapping[tuple[int, str], Callable[[], Any]],
    repeats: int,
) -> dict[str, Any]:
    """Times the sides in turn; the best batch size of each side is what counts."""
    seconds = time_in_turn(sides, repeats, name)
    for cell in cells:
        size = cell["batch_size"]
        engine, reference = seconds[size, "engine"], seconds[size, "reference"]
        cell |= {"engine": _spread(engine), "reference": _spread(reference), "speedup": _speedup(engine, reference)}
    best = {
        side: min((times for (_, name), times in seconds.items() if name == side), key=statistics.median)
        for side in ("engine", "reference")
    }
    return {"rows": rows, "cells": cells, "best_against_best": _speedup(best["engine"], best["reference"])}


def time_in_turn(
    sides: Mapping[tuple[int, str], Callable[[], Any]], repeats: int, name: str
) -> dict[tuple[int, str], list[float]]:
    """Seconds of every call in every repeat; each repeat runs all of them, every second one in reverse order."""
    seconds: dict[tuple[int, str], list[float]] = {side: [] for side in sides}
    with tqdm(total=repeats * len(sides), desc=name, unit="run", file=sys.stderr) as bar:
        for repeat in range(repeats):
            for side in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
                started = time.perf_counter()
                sides[side]()  # ends with a copy to the CPU on both sides, so a GPU has finished
                seconds[side].append(time.perf_counter() - started)
                bar.update()
    return seconds


def _spread(seconds: Sequence[float]) -> dict[str, Any]:
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds), "all_s": seconds}


def _speedup(engine: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Ratio of the medians, and the range of the ratios within one repeat."""
    ratios = [theirs / ours for ours, theirs in zip(engine, reference, strict=True)]
    medians = statistics.median(reference) / statistics.median(engine)
    return {"of_medians": medians, "min": min(ratios), "max": max(ratios)}


def render(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    env = result["environment"]
    lines = [
        f"Model {result['model']} on {result['device']}; {env['cpu']}, {env['torch_threads']} threads, torch "
        f"{env['versions']['torch']}, transformers {env['versions']['transformers']}, sentence-transformers "
        f"{env['versions']['sentence-transformers']}; {result['repeats']} repeats, median (min to max).",
        "",
        "| texts | batch size | engine, s | reference, s | speed-up | rows that differ | lowest cosine |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ("queries", "documents"):
        for cell in result[name]["cells"] if name in result else ():
            times = [
                f"{cell[side]['median_s']:.2f} ({cell[side]['min_s']:.2f} to {cell[side]['max_s']:.2f})"
                for side in ("engine", "reference")
            ]
            up = cell["speedup"]
            lines.append(
                f"| {cell['rows']} {name} | {cell['batch_size']} | {times[0]} | {times[1]} | "
                f"{up['of_medians']:.2f} ({up['min']:.2f} to {up['max']:.2f}) | {cell['differing_rows']} | "
                f"{cell['lowest_cosine']:.6f} |"
            )
    lines.append("")
    for name, reference in (("queries", "generate + second forward"), ("documents", "stock SentenceTransformer")):
        if name in result:
            best = result[name]["best_against_best"]
            lines.append(
                f"{name.capitalize()}, best batch size of each: {best['of_medians']:.2f} times as fast as {reference}."
            )
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--queries", nargs="+", type=Path, help="BEIR-layout folders to draw queries from")
    parser.add_argument("--documents", type=Path, help="BEIR-layout folder whose first documents are encoded")
    parser.add_argument("--model", default="searchr3", help="alias, folder or hub id (default: searchr3)")
    parser.add_argument("--query-count", type=int, default=256, help="default: 256")
    parser.add_argument("--document-count", type=int, default=2000, help="default: 2000")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 64], help="of the queries (default: 32 64)")
    parser.add_argument("--document-batch-sizes", nargs="+", type=int, default=[32], help="default: 32")
    parser.add_argument("--max-reasoning-tokens", type=int, help="reasoning budget (default: the checkpoint's)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side (default: 5)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    parser.add_argument("--out", type=Path, help="folder for engine.json and engine.md")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 1 when the two sides disagree, 2 for bad input."""
    parser = arguments()
    args = parser.parse_args(argv)
    if not args.queries and not args.documents:
        parser.error("nothing to do: give --queries, --documents or both")
    if args.threads:
        torch.set_num_threads(args.threads)

    from searchr3_embed import ReasoningEmbedder
    from searchr3_embed.checkpoints import CheckpointError
    from training.report import environment

    try:
        queries = sample_queries(args.queries, args.query_count) if args.queries else []
        documents = list(read_beir(args.documents).documents.values()) if args.documents else []
        if len(documents) < args.document_count and args.documents:
            raise DataError(f"{args.documents}: {args.document_count} documents wanted, it holds {len(documents)}")
        embedder = ReasoningEmbedder(args.model, device=args.device, on_truncate="ignore")
    except (DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result: dict[str, Any] = {"model": args.model, "device": str(embedder.device), "repeats": args.repeats}
    result["environment"] = environment()
    try:
        if queries:
            result["queries"] = compare_queries(
                embedder, queries, args.batch_sizes, args.repeats, args.max_reasoning_tokens
            )
        if documents:
            result["documents"] = compare_documents(
                embedder, documents[: args.document_count], args.document_batch_sizes, args.repeats
            )
    except DisagreementError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(render(result))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "engine.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (args.out / "engine.md").write_text(render(result) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
