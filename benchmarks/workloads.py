"""The workloads W1 to W7, each a function of the setting that returns its cells and notes."""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import memory
from benchmarks.cells import Outcome, Side, compare
from benchmarks.peers import NotAvailableError, continuous_batching, generate_then_embed, generate_with_states
from benchmarks.profiling import profile_call
from benchmarks.setting import Setting
from benchmarks.timing import agreement, speedup, spread, time_in_turn
from searchr3_embed import ReasoningEmbedder

PEER_A = "(a) generate + second forward"
PEER_B = "(b) generate with hidden states"
PEER_C = "(c) continuous batching + second forward"
PEER_D = "(d) stock SentenceTransformer"
PEER_E = "(e) asyncio.to_thread per call"
SEQUENTIAL = "one call after another"
# A peer that takes this much longer than ours on a few queries is not timed on more.
_HOPELESS = 50


def queries_mini(setting: Setting) -> dict[str, Any]:
    """W1: queries of mixed length through the model, and where the time goes."""
    texts = setting.queries(setting.sizes.queries)
    ours = our_queries(setting.embedder, texts, setting.sizes.batch_sizes)
    peers = [
        peer_queries(PEER_A, generate_then_embed, setting.stock_lm, setting.embedder, texts, ours.batch_sizes),
        peer_queries(PEER_B, generate_with_states, setting.stock_lm, setting.embedder, texts, ours.batch_sizes),
    ]
    cells = compare("W1", ours, peers, len(texts), setting.repeats)
    return {"cells": cells, "profile": profile_call(partial(encode_queries, setting.embedder, texts, 32))}


def queries_steered(setting: Setting) -> dict[str, Any]:
    """W2: the same queries with a long shared system prompt and long reasoning."""
    texts = setting.queries(setting.sizes.queries)
    embedder, model = setting.steered_embedder, setting.steered_lm
    sizes = setting.sizes.batch_sizes
    ours = our_queries(embedder, texts, sizes)
    peers = [
        peer_queries(PEER_A, generate_then_embed, model, embedder, texts, sizes),
        peer_queries(PEER_B, generate_with_states, model, embedder, texts, sizes),
    ]
    cells = compare("W2", ours, peers, len(texts), setting.repeats)
    few = texts[: setting.sizes.continuous]
    ours = our_queries(embedder, few, sizes[:1])
    continuous = peer_queries(PEER_C, continuous_batching, model, embedder, few, sizes[:1])
    try:
        _refuse_hopeless(embedder, model, few[:2])
        cells += compare("W2, continuous batching", ours, [continuous], len(few), setting.repeats)
    except NotAvailableError as error:
        cells.append({"peer": PEER_C, "items": len(few), "unavailable": str(error)})
    lengths = [trace.reasoning_tokens for trace in embedder.reason(texts, batch_size=sizes[0])]
    return {"cells": cells, "reasoning_tokens": {"least": min(lengths), "most": max(lengths)}}


def _refuse_hopeless(embedder: ReasoningEmbedder, model: Any, texts: list[str]) -> None:
    seconds = []
    encode_queries(embedder, texts, 2)  # warms up
    calls: list[Callable[[], Any]] = [
        partial(encode_queries, embedder, texts, 2),
        partial(continuous_batching, model, embedder.conversation, texts, 2),
    ]
    for call in calls:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    if seconds[1] > _HOPELESS * seconds[0]:
        raise NotAvailableError(f"too slow: {seconds[1]:.1f} s for {len(texts)} queries, ours {seconds[0]:.2f} s")


def single_queries(setting: Setting) -> dict[str, Any]:
    """W3: one query at a time."""
    texts = setting.queries(setting.sizes.single)
    ours = our_queries(setting.embedder, texts, (1,))
    peer = peer_queries(PEER_A, generate_then_embed, setting.stock_lm, setting.embedder, texts, (1,))
    # The check alone; the times below are those of single calls.
    (checked,) = compare("W3", ours, [peer], len(texts), repeats=1)
    p50: dict[str, list[float]] = {"ours": [], "theirs": []}
    p95: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in tqdm(range(setting.repeats), desc="W3, latencies", unit="round", file=sys.stderr):
        latencies: dict[str, list[float]] = {"ours": [], "theirs": []}
        for number, text in enumerate(texts):
            for side in ("ours", "theirs") if (number + repeat) % 2 == 0 else ("theirs", "ours"):
                started = time.perf_counter()
                if side == "ours":
                    setting.embedder.encode_query(text, show_progress_bar=False)
                else:
                    generate_then_embed(setting.stock_lm, setting.embedder.conversation, [text], 1)
                latencies[side].append(time.perf_counter() - started)
        for side, times in latencies.items():
            p50[side].append(statistics.median(times))
            p95[side].append(float(np.percentile(times, 95)))
    cells = []
    for name, found in (("p50", p50), ("p95", p95)):
        cell = {key: checked[key] for key in ("items", "lowest_cosine", "differing_rows")}
        cell |= {"peer": f"{PEER_A}, {name} of a query", "speedup": speedup(found["ours"], found["theirs"])}
        cell |= {side: {**spread(times), "batch_size": 1} for side, times in found.items()}
        cells.append(cell)
    return {"cells": cells}


def documents(setting: Setting, name: str) -> dict[str, Any]:
    """W4: documents, directly. Where there are many, each side's batch size is chosen on a sample of them."""
    texts, sizes = setting.documents(name), setting.sizes.document_batch_sizes
    sample = texts[:: math.ceil(len(texts) / setting.sizes.document_sample)]
    if len(sample) == len(texts):
        return {"cells": _compare_documents(setting, f"W4, {name}", texts, sizes, sizes)}
    (trial,) = _compare_documents(setting, f"W4, {name}, choice of batch sizes", sample, sizes, sizes)
    chosen = [(trial[side]["batch_size"],) for side in ("ours", "theirs")]
    return {"cells": _compare_documents(setting, f"W4, {name}", texts, *chosen)}


def _compare_documents(
    setting: Setting, title: str, texts: list[str], sizes: Sequence[int], stock_sizes: Sequence[int]
) -> list[dict[str, Any]]:
    def ours(size: int) -> Outcome:
        return None, setting.embedder.encode_document(texts, batch_size=size, show_progress_bar=False)

    def stock(size: int) -> Outcome:
        return None, np.asarray(setting.stock_embedder.encode(texts, batch_size=size, show_progress_bar=False))

    sides = Side("ours", ours, batch_sizes=sizes), [Side(PEER_D, stock, batch_sizes=stock_sizes)]
    return compare(title, *sides, len(texts), setting.repeats)


def concurrent_queries(setting: Setting) -> dict[str, Any]:
    """W5: async calls that wait at the same time."""
    texts, embedder = setting.queries(setting.sizes.concurrent), setting.embedder
    encode = partial(embedder.encode_query, show_progress_bar=False)

    def together(_: int) -> Outcome:
        async def gather() -> list[Any]:
            return await asyncio.gather(*(embedder.aencode_query(text) for text in texts))

        return None, np.stack(asyncio.run(gather()))

    def in_threads(_: int) -> Outcome:
        async def gather() -> list[Any]:
            return await asyncio.gather(*(asyncio.to_thread(encode, text) for text in texts))

        try:
            return None, np.stack(asyncio.run(gather()))
        except RuntimeError as error:  # a tokenizer that another thread is using refuses
            raise NotAvailableError(str(error)) from error

    def in_turn(_: int) -> Outcome:
        return None, np.stack([encode(text) for text in texts])

    # Each call holds one text, so there is no batch size to choose.
    peers = [Side(SEQUENTIAL, in_turn, batch_sizes=(1,)), Side(PEER_E, in_threads, batch_sizes=(1,))]
    return {"cells": compare("W5", Side("ours", together, batch_sizes=(1,)), peers, len(texts), setting.repeats)}


def peak_memory(setting: Setting) -> dict[str, Any]:
    """W6: peak memory of W1 and W4a, each side in a fresh process."""
    queries, abstracts = setting.queries(setting.sizes.queries), setting.documents("scifact")
    cells = []
    for sides, texts, sizes, peer in (
        (memory.SIDES[:2], queries, setting.sizes.batch_sizes, PEER_A),
        (memory.SIDES[2:], abstracts, setting.sizes.document_batch_sizes, PEER_D),
    ):
        for size in sizes:
            found = [
                memory.measure(side, setting.folder, texts, size, setting.scratch, setting.python) for side in sides
            ]
            ids = [one.pop("ids") for one in found]
            vectors = [one.pop("vectors") for one in found]
            same = np.array([ids[0] is None or ids[0][row] == ids[1][row] for row in range(len(texts))])
            checked = agreement(vectors[0], vectors[1], same, f"W6: {peer}, batch size {size}")
            cells.append(
                {
                    "peer": f"{peer}, batch size {size}",
                    "items": len(texts),
                    "lowest_cosine": checked["lowest_cosine"],
                    "differing_rows": checked["differing_rows"],
                    "ours_bytes": found[0],
                    "theirs_bytes": found[1],
                    "ratio": found[0]["peak_bytes"] / found[1]["peak_bytes"],
                }
            )
    return {"memory": cells}


def linearity(setting: Setting) -> dict[str, Any]:
    """W7: seconds per item as the number of items grows."""
    embedder = setting.embedder
    queries = setting.queries(max(setting.sizes.linear_queries))
    mixed = setting.mixed_documents(max(setting.sizes.linear_documents))

    def encode_documents(texts: list[str]) -> np.ndarray:
        return embedder.encode_document(texts, batch_size=32, show_progress_bar=False)

    rows = []
    plan: list[tuple[str, list[str], Sequence[int], Callable[[list[str]], np.ndarray]]] = [
        ("documents", mixed, setting.sizes.linear_documents, encode_documents),
        ("queries", queries, setting.sizes.linear_queries, partial(encode_queries, embedder, batch_size=32)),
    ]
    for kind, texts, sizes, encode in plan:
        # Ours against itself: the vectors of the smallest set must be those in the largest.
        small, large = encode(texts[: sizes[0]]), encode(texts)[: sizes[0]]
        agreement(small, large, np.ones(sizes[0], dtype=bool), f"W7, {kind}")
        seconds = time_in_turn(
            {str(size): partial(encode, texts[:size]) for size in sizes}, setting.repeats, f"W7, {kind}"
        )
        per_item = {size: statistics.median(seconds[str(size)]) / size for size in sizes}
        rows += [
            {
                "kind": kind,
                "items": size,
                "time": spread(seconds[str(size)]),
                "s_per_item": per_item[size],
                "relative": per_item[size] / per_item[sizes[0]],
            }
            for size in sizes
        ]
    return {"linearity": rows}


def our_queries(embedder: ReasoningEmbedder, texts: list[str], batch_sizes: Sequence[int]) -> Side:
    """Ours, thinking: the traces are compared, ``encode_query`` is timed."""

    def check(size: int) -> Outcome:
        traces = embedder.reason(texts, batch_size=size)
        return [trace.reasoning_ids for trace in traces], np.stack([trace.embedding for trace in traces])

    return Side("ours", check, partial(encode_queries, embedder, texts), batch_sizes)


def encode_queries(embedder: ReasoningEmbedder, texts: list[str], batch_size: int) -> np.ndarray:
    """``encode_query`` without its progress bar."""
    vectors: np.ndarray = embedder.encode_query(texts, batch_size=batch_size, show_progress_bar=False)
    return vectors


def peer_queries(
    name: str,
    peer: Callable[..., Outcome],
    model: Any,
    embedder: ReasoningEmbedder,
    texts: list[str],
    batch_sizes: Sequence[int],
) -> Side:
    """A peer on a stock model, with our embedder's conversation."""
    return Side(name, partial(peer, model, embedder.conversation, texts), batch_sizes=batch_sizes)


WORKLOADS: dict[str, tuple[str, Callable[[Setting], dict[str, Any]]]] = {
    "W1": ("queries of mixed length, think and embed", queries_mini),
    "W2": ("the same through a random Qwen2, 120-token system prompt, 5 to 60 tokens of reasoning", queries_steered),
    "W3": ("one query at a time", single_queries),
    "W4a": ("SciFact abstracts, direct", partial(documents, name="scifact")),
    "W4b": ("Perspectrum sentences, direct", partial(documents, name="perspectrum")),
    "W5": ("concurrent async queries", concurrent_queries),
    "W6": ("peak memory of W1 and W4a", peak_memory),
    "W7": ("cost per item as the number of items grows", linearity),
}
