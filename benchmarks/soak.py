"""Does it stay as it was? Many async callers at once for half an hour: memory, errors, waiting times.

    python -m benchmarks.soak --minutes 30 --callers 64 --out results

Callers take turns with everything that is asynchronous: one question or a few, documents in small and larger lists,
with and without thinking, through the core and through both integrations. What must hold:

* No call fails, and every vector is the one that the same text gives by itself, to 1e-4 (at most 0.05 % of the
  thinking ones may differ: ties).
* Memory in the last minute is within 2 % of that after minute 5 (of a shorter run: after a sixth of it).
* The p99 of the waiting times is flat: the median of the last third of the minutes is at most 1.25 times that of the
  first third, the warm-up left out. Other work on the machine shows here; leave it alone.

A minute of a shorter run is a thirtieth of it. The exit status is 1 when something is wrong, 2 for bad input.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from searchr3_embed.files import write_json, write_text
from training.evaluate.machine import machine_description
from training.evaluate.tables import markdown_table

if TYPE_CHECKING:
    from benchmarks.fuzz.subjects import Subject

MOST_GROWTH = 0.02
MOST_DIFFERENCE = 1e-4
MOST_DIFFERING = 0.0005
MOST_P99_GROWTH = 1.25
# Spans of a run, each a minute where it lasts half an hour; so many of them are for warming up.
SPANS, WARM_UP = 30, 5
_SAMPLES_OF_A_SPAN = 20
_KEPT_ERRORS = 20


@dataclasses.dataclass
class Log:
    """What callers and the sampler note.

    Attributes:
        waits: Seconds since the beginning at which a call ended, and how long it took.
        memory: Seconds since the beginning, and resident bytes.
        calls: By kind.
        thinking: Vectors that were thought about.
        differing: Those of them that are not what they should be.
        errors: Of calls, and wrong vectors of documents.
    """

    waits: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    memory: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    calls: dict[str, int] = dataclasses.field(default_factory=dict)
    thinking: int = 0
    differing: int = 0
    errors: list[str] = dataclasses.field(default_factory=list)
    failed: int = 0

    def error(self, message: str) -> None:
        """Notes that something is wrong."""
        self.failed += 1
        if len(self.errors) < _KEPT_ERRORS:
            self.errors.append(message)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        epilog="first try:  python -m benchmarks.soak --minutes 1 --callers 8 --out results",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--callers", type=int, default=64, help="how many at once (default: 64)")
    parser.add_argument("--model", default="searchr3", help="alias, folder or hub id (default: searchr3)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    parser.add_argument("--seed", type=int, default=0, help="of what callers ask (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="folder for soak.json and soak.md, made if missing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 1 when something is wrong, 2 for bad input."""
    parser = arguments()
    args = parser.parse_args(argv)
    if not 0.1 <= args.minutes <= 10_000:
        parser.error(f"--minutes must be from 0.1 to 10000, got {args.minutes:g}")
    if args.callers < 1:
        parser.error(f"--callers must be at least 1, got {args.callers}")
    if not Path("/proc/self/statm").exists():
        parser.error("memory can be watched on Linux only")
    from benchmarks.fuzz.subjects import subject
    from searchr3_embed.checkpoint import CheckpointError

    try:
        tried = subject(args.model, args.model, args.device)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    log = asyncio.run(soak(tried, 60 * args.minutes, args.callers, args.seed))
    settings = {name: getattr(args, name) for name in ("minutes", "callers", "model", "seed")}
    result = summary(log, 60 * args.minutes, settings)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "soak.json", result)
    write_text(args.out / "soak.md", render(result))
    print(render(result), end="")
    return 1 if result["wrong"] else 0


def pool(seed: int) -> list[str]:
    """Texts of 3 to 150 words."""
    rng = random.Random(seed)
    words = (
        "river glacier bank heart question answer vector text species rates csv column cold adult stone why".split()
    )
    return [" ".join(rng.choices(words, k=rng.choice((3, 6, 12, 40, 150)))) + f" {number}" for number in range(100)]


async def soak(tried: Subject, seconds: float, callers: int, seed: int = 0) -> Log:
    """Lets callers ask for so many seconds, and watches."""
    texts = pool(seed)
    tried.think(True)
    expected = {
        "documents": np.asarray(tried.embedder.encode_document(texts)),
        "thinking": np.asarray(tried.embedder.encode_query(texts, batch_size=1)),
        "queries": np.asarray(tried.embedder.encode_query(texts, reason=False)),
    }
    log, began = Log(), time.monotonic()
    asking = [
        _caller(tried, texts, expected, began, seconds, random.Random(f"{seed} {n}"), log) for n in range(callers)
    ]
    await asyncio.gather(_sampler(began, seconds, log), *asking)
    return log


async def _caller(
    tried: Subject,
    texts: list[str],
    expected: dict[str, np.ndarray],
    began: float,
    seconds: float,
    rng: random.Random,
    log: Log,
) -> None:
    embedder, langchain, llama_index = tried.embedder, tried.langchain, tried.llama_index
    # What is called, what it should give, and the most texts at once.
    ways: dict[str, tuple[Callable[[Any], Awaitable[Any]], str, int]] = {
        "aencode_query": (embedder.aencode_query, "thinking", 4),
        "aencode_query, no thinking": (lambda part: embedder.aencode_query(part, reason=False), "queries", 4),
        "aencode_document": (embedder.aencode_document, "documents", 32),
        "langchain aembed_query": (lambda part: _each(langchain.aembed_query, part), "thinking", 1),
        "langchain aembed_documents": (langchain.aembed_documents, "documents", 8),
        "llama_index aget_query_embedding": (
            lambda part: _each(llama_index.aget_query_embedding, part),
            "thinking",
            1,
        ),
        "llama_index aget_text_embedding_batch": (llama_index.aget_text_embedding_batch, "documents", 8),
    }
    while time.monotonic() - began < seconds:
        name = rng.choice(list(ways))
        way, kind, most = ways[name]
        rows = rng.sample(range(len(texts)), rng.randint(1, most))
        start = time.monotonic()
        try:
            vectors = np.asarray(await way([texts[row] for row in rows]))
        except Exception as error:
            log.error(f"{name}: {error!r}")
            await asyncio.sleep(0)  # where every call fails at once, the sampler has to come to its turn
            continue
        log.waits.append((time.monotonic() - began, time.monotonic() - start))
        log.calls[name] = log.calls.get(name, 0) + 1
        _compare(name, kind, vectors, expected[kind][rows], log)


async def _each(call: Callable[[str], Awaitable[Any]], part: Sequence[str]) -> list[Any]:
    return [await call(text) for text in part]


def _compare(name: str, kind: str, vectors: np.ndarray, expected: np.ndarray, log: Log) -> None:
    if vectors.shape != expected.shape:
        log.error(f"{name}: shape {vectors.shape} instead of {expected.shape}")
        return
    # "Not less or equal", so that NaN counts.
    wrong = int((~(np.abs(vectors - expected).max(axis=1) <= MOST_DIFFERENCE)).sum())
    if kind == "thinking":
        log.thinking += len(vectors)
        log.differing += wrong
    elif wrong:
        log.error(f"{name}: {wrong} of {len(vectors)} vectors are wrong")


async def _sampler(began: float, seconds: float, log: Log) -> None:
    every = seconds / SPANS / _SAMPLES_OF_A_SPAN
    with tqdm(total=round(seconds), unit=" s", desc="soaking", file=sys.stderr) as bar:
        while (passed := time.monotonic() - began) < seconds:
            log.memory.append((passed, resident_bytes()))
            bar.n = round(passed)
            bar.set_postfix(calls=len(log.waits), errors=log.failed, MiB=log.memory[-1][1] >> 20)
            await asyncio.sleep(every)


def resident_bytes() -> int:
    """Memory of this process that is in use now, on Linux."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def summary(log: Log, seconds: float, settings: dict[str, Any]) -> dict[str, Any]:
    """What soak.json holds; ``wrong`` lists in words what is."""
    spans: list[dict[str, Any]] = []
    for number in range(SPANS):
        start, end = (seconds * (number + shift) / SPANS for shift in (0, 1))
        waits = [wait for ended, wait in log.waits if start <= ended < end]
        memory = [held for at, held in log.memory if start <= at < end]
        p50, p99 = np.percentile(waits, [50, 99]).tolist() if waits else (None, None)
        held = statistics.median(memory) if memory else None
        spans.append({"calls": len(waits), "p50_seconds": p50, "p99_seconds": p99, "resident_bytes": held})
    wrong = [f"{log.failed} calls failed or gave wrong vectors"] if log.failed else []
    if log.differing > max(1, MOST_DIFFERING * log.thinking):
        wrong.append(f"{log.differing} of {log.thinking} thinking vectors differ")
    later = [span["resident_bytes"] for span in spans[WARM_UP:] if span["resident_bytes"] is not None]
    growth = later[-1] / later[0] - 1 if later else None
    if growth is None or growth > MOST_GROWTH:
        wrong.append("memory was not sampled" if growth is None else f"memory grew by {growth:.1%}")
    third = (SPANS - WARM_UP) // 3
    p99 = [span["p99_seconds"] for span in spans[WARM_UP:] if span["p99_seconds"] is not None]
    ratio = statistics.median(p99[-third:]) / statistics.median(p99[:third]) if p99 else None
    if ratio is None or ratio > MOST_P99_GROWTH:
        wrong.append("no call ended" if ratio is None else f"the p99 grew to {ratio:.2f} times what it was")
    return {
        "settings": settings,
        "machine": machine_description(),
        "wrong": wrong,
        "memory_growth": growth,
        "p99_ratio": ratio,
        **{name: getattr(log, name) for name in ("calls", "thinking", "differing", "failed", "errors")},
        "spans": spans,
    }


def _shown(value: float | None, unit: float = 1, digits: int = 3) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"


def render(result: dict[str, Any]) -> str:
    """The report as Markdown."""
    settings, calls = result["settings"], result["calls"]
    rows = [
        [number, span["calls"], *(_shown(span[name]) for name in ("p50_seconds", "p99_seconds")),
         _shown(span["resident_bytes"], 2**20, 0)]
        for number, span in enumerate(result["spans"], start=1)
    ]  # fmt: skip
    growth = (
        ""
        if result["memory_growth"] is None
        else f" Memory after the warm-up to the end: {result['memory_growth']:+.2%}."
    )
    ratio = (
        "" if result["p99_ratio"] is None else f" p99 of the last third against the first: {result['p99_ratio']:.2f}."
    )
    title = (
        f"{settings['callers']} callers for {settings['minutes']:g} minutes, {sum(calls.values()):,} calls, "
        f"{result['thinking']:,} thinking vectors of which {result['differing']} differ.{growth}{ratio}"
    )
    verdict = "Wrong: " + "; ".join(result["wrong"]) + "." if result["wrong"] else "Nothing is wrong."
    errors = ["\n".join(f"* {error}" for error in result["errors"])] if result["errors"] else []
    header = [f"1/{SPANS} of the time", "calls", "p50, s", "p99, s", "MiB"]
    return "\n\n".join([title, verdict, *errors, markdown_table(header, rows)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
