"""The workloads W1 to W7, each a function of the setting that returns its cells and notes.

The peers follow the kind of the model. A single model meets those that get an embedding out of a generated token. An
encoder with a thinker meets the stock encoder with ``generate`` beside it, which computes the same, and the stock
encoder alone, which says what thinking costs.
"""

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
from benchmarks.peers import (
    NotAvailableError,
    continuous_batching,
    encode_then_generate,
    generate_then_embed,
    generate_with_states,
)
from benchmarks.profiling import profile_call
from benchmarks.setting import Setting
from benchmarks.timing import agreement, speedup, spread, time_in_turn
from searchr3_embed import ReasoningEmbedder

PEER_A = "(a) generate + second forward"
PEER_B = "(b) generate with hidden states"
PEER_C = "(c) continuous batching + second forward"
PEER_D = "(d) stock SentenceTransformer"
PEER_E = "(e) asyncio.to_thread per call"
PEER_F = "(f) stock SentenceTransformer + generate"
PEER_G = "(g) stock SentenceTransformer, which does not think"
SEQUENTIAL = "one call after another"
# A peer that takes this much longer than ours on a few queries is not timed on more.
_HOPELESS = 50


def queries_mini(setting: Setting) -> dict[str, Any]:
    """W1: queries of mixed length through the model, and where the time goes."""
    texts, sizes = setting.queries(setting.sizes.queries), setting.sizes.batch_sizes
    cells = _compare_queries("W1", setting, setting.embedder, lambda: setting.stock_lm, texts, sizes)
    return {"cells": cells, "profile": profile_call(partial(encode_queries, setting.embedder, texts, 32))}


def queries_steered(setting: Setting) -> dict[str, Any]:
    """W2: the same queries with a long shared system prompt and long reasoning."""
    texts = setting.queries(setting.sizes.queries)
    embedder, sizes = setting.steered_embedder, setting.sizes.batch_sizes
    cells = _compare_queries("W2", setting, embedder, lambda: setting.steered_lm, texts, sizes)
    if not setting.has_thinker:
        cells += _continuous(setting, texts)
    lengths = [trace.reasoning_tokens for trace in embedder.reason(texts, batch_size=sizes[0])]
    return {"cells": cells, "reasoning_tokens": {"least": min(lengths), "most": max(lengths)}}


def _compare_queries(
    title: str,
    setting: Setting,
    embedder: ReasoningEmbedder,
    model: Callable[[], Any],
    texts: list[str],
    sizes: Sequence[int],
) -> list[dict[str, Any]]:
    """Thinking about queries, against the peers of its kind; ``model`` gives a single model in its stock class."""
    ours = our_queries(embedder, texts, sizes)
    if setting.has_thinker:
        cells = compare(title, ours, [_stock_thinking(setting, embedder, texts, sizes)], len(texts), setting.repeats)
        alone = _without_thinking(setting, embedder, texts, sizes)
        return cells + compare(f"{title}, cost", *alone, len(texts), setting.repeats)
    peers = [
        peer_queries(PEER_A, generate_then_embed, model(), embedder, texts, sizes),
        peer_queries(PEER_B, generate_with_states, model(), embedder, texts, sizes),
    ]
    return compare(title, ours, peers, len(texts), setting.repeats)


def _stock_thinking(setting: Setting, embedder: ReasoningEmbedder, texts: list[str], sizes: Sequence[int]) -> Side:
    assert embedder.question_side is not None
    return Side(
        PEER_F, partial(encode_then_generate, setting.stock_embedder, embedder.question_side, texts), batch_sizes=sizes
    )


def _without_thinking(
    setting: Setting, embedder: ReasoningEmbedder, texts: list[str], sizes: Sequence[int]
) -> tuple[Side, list[Side]]:
    """What thinking costs: the encoder's vectors are compared, ours thinks in the timed calls."""

    def check(size: int) -> Outcome:
        return None, embedder.encode_query(texts, reason=False, batch_size=size, show_progress_bar=False)

    def stock(size: int) -> Outcome:
        found = setting.stock_embedder.encode_query(texts, batch_size=size, show_progress_bar=False)
        return None, np.asarray(found)

    ours = Side("ours", check, partial(encode_queries, embedder, texts), sizes)
    return ours, [Side(PEER_G, stock, batch_sizes=sizes)]


def _continuous(setting: Setting, texts: list[str]) -> list[dict[str, Any]]:
    """W2 against continuous batching, on a few queries."""
    embedder, model, sizes = setting.steered_embedder, setting.steered_lm, setting.sizes.batch_sizes
    few = texts[: setting.sizes.continuous]
    ours = our_queries(embedder, few, sizes[:1])
    continuous = peer_queries(PEER_C, continuous_batching, model, embedder, few, sizes[:1])
    try:
        _refuse_hopeless(embedder, model, few[:2])
        return compare("W2, continuous batching", ours, [continuous], len(few), setting.repeats)
    except NotAvailableError as error:
        return [{"peer": PEER_C, "items": len(few), "unavailable": str(error)}]


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
    texts, embedder = setting.queries(setting.sizes.single), setting.embedder
    calls: dict[str, Callable[[str], Any]]
    if not setting.has_thinker:
        peer = peer_queries(PEER_A, generate_then_embed, setting.stock_lm, embedder, texts, (1,))
        calls = {PEER_A: partial(_one_by_peer, setting.stock_lm, embedder)}
        # The check alone; the times below are those of single calls.
        checked = compare("W3", our_queries(embedder, texts, (1,)), [peer], len(texts), repeats=1)
    else:
        stock, side = setting.stock_embedder, embedder.question_side
        assert side is not None
        thinking = _stock_thinking(setting, embedder, texts, (1,))
        checked = compare("W3", our_queries(embedder, texts, (1,)), [thinking], len(texts), repeats=1)
        checked += compare("W3, cost", *_without_thinking(setting, embedder, texts, (1,)), len(texts), repeats=1)
        calls = {
            PEER_F: lambda text: encode_then_generate(stock, side, [text], 1),
            PEER_G: lambda text: stock.encode_query(text, show_progress_bar=False),
        }
    seconds = _single_calls({"ours": partial(embedder.encode_query, show_progress_bar=False), **calls}, texts, setting)
    cells = []
    for agreed in checked:
        for name, share in (("p50", 50), ("p95", 95)):
            found = {
                side: [float(np.percentile(times, share)) for times in seconds[calls_of]]
                for side, calls_of in (("ours", "ours"), ("theirs", agreed["peer"]))
            }
            cell = {key: agreed[key] for key in ("items", "lowest_cosine", "differing_rows")}
            cell |= {"peer": f"{agreed['peer']}, {name} of a query", "speedup": speedup(*found.values())}
            cell |= {side: {**spread(times), "batch_size": 1} for side, times in found.items()}
            cells.append(cell)
    return {"cells": cells}


def _one_by_peer(model: Any, embedder: ReasoningEmbedder, text: str) -> Outcome:
    return generate_then_embed(model, embedder.conversation, [text], 1)


def _single_calls(
    calls: dict[str, Callable[[str], Any]], texts: list[str], setting: Setting
) -> dict[str, list[list[float]]]:
    """Seconds of every call, by side and repeat; for each text the sides take turns."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in calls}
    for repeat in tqdm(range(setting.repeats), desc="W3, latencies", unit="round", file=sys.stderr):
        for times in seconds.values():
            times.append([])
        for number, text in enumerate(texts):
            for name in list(calls)[:: 1 if (number + repeat) % 2 == 0 else -1]:
                started = time.perf_counter()
                calls[name](text)
                seconds[name][-1].append(time.perf_counter() - started)
    return seconds


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
        found = setting.stock_embedder.encode_document(texts, batch_size=size, show_progress_bar=False)
        return None, np.asarray(found)

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
        (memory.SIDES[:2], queries, setting.sizes.batch_sizes, PEER_F if setting.has_thinker else PEER_A),
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
