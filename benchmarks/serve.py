"""How does `searchr3 serve` hold up under load, and against a server around the stock class with the same weights?

    python -m benchmarks.serve --out results/serve

Servers run as processes of their own on this machine; the callers share it with them. Texts are passages of Python's
own documentation, and questions about their names. Parts:

  load       callers at once, questions that think and batches of documents mixed: errors, latencies, memory
  documents  documents a second, of ours and of the peer in turn
  questions  64 questions that think at once, against one after another

The peer is benchmarks/serve_peer.py, or any server of OpenAI's protocol: infinity, say, in an environment of its own,
with the same weights (searchr3 save searchr3 FOLDER):

    infinity_emb v2 --model-id FOLDER --port 7997 --url-prefix /v1 --device cpu
    python -m benchmarks.serve --only documents --peer-url http://127.0.0.1:7997/v1 --peer-model FOLDER \\
        --out results/infinity
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from searchr3_embed.checkpoint import locate
from searchr3_embed.files import write_json
from searchr3_embed.search import python_docs
from training.evaluate.machine import machine_description

PARTS = ("load", "documents", "questions")
# Of the calls under load so many are documents, each a batch of so many passages.
DOCUMENT_SHARE, DOCUMENTS_A_CALL = 0.2, 16
# Of the peer comparison: callers at once, and passages in a call.
BULK_CALLERS, BULK_DOCUMENTS = 4, 64
QUESTIONS_AT_ONCE = 64
_TIMEOUT = 300.0


@dataclasses.dataclass
class Texts:
    """What is sent."""

    documents: list[str]
    questions: list[str]

    @classmethod
    def of_python(cls) -> Texts:
        """Passages of Python's own documentation, and questions."""
        passages = python_docs.read_stdlib()
        random.Random(0).shuffle(passages)
        names = [passage.title or passage.id for passage in passages]
        patterns = itertools.cycle(["how do I use {}?", "what does {} return?", "when would I need {} in a program?"])
        questions = [pattern.format(name) for pattern, name in zip(patterns, names, strict=False)]
        return cls([passage.text for passage in passages], questions)


@dataclasses.dataclass
class Server:
    """A server to call."""

    address: str
    model: str
    process: psutil.Process | None = None

    def memory(self) -> float:
        """Of its process, in MiB."""
        return self.process.memory_info().rss / 2**20 if self.process is not None else float("nan")


@contextlib.contextmanager
def started(command: list[str], port: int, model: str) -> Iterator[Server]:
    """Starts a server and waits until it is ready."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + _TIMEOUT
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start: {' '.join(command)}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10)  # our own server  # nosec B310
                break
            time.sleep(0.2)
        yield Server(f"http://127.0.0.1:{port}/v1", model, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(60)


def ours(model: str) -> Any:
    """Our server."""
    port = _free_port()
    command = [sys.executable, "-m", "searchr3_embed", "serve", "--model", model, "--served-name", "searchr3"]
    return started([*command, "--port", str(port)], port, "searchr3")


def peer(args: argparse.Namespace) -> Any:
    """The peer: one that runs already, or the twenty lines."""
    if args.peer_url is not None:
        return contextlib.nullcontext(Server(args.peer_url, args.peer_model))
    port = _free_port()
    return started(
        [sys.executable, "-m", "benchmarks.serve_peer", str(locate.find(args.model)), str(port)], port, "stock"
    )


async def ask(client: httpx.AsyncClient, server: Server, texts: list[str], **more: Any) -> np.ndarray:
    """One call; its vectors."""
    body = {"model": server.model, "input": texts, **more}
    reply = await client.post(server.address + "/embeddings", json=body)
    reply.raise_for_status()
    return np.array([row["embedding"] for row in reply.json()["data"]], dtype=np.float32)


@contextlib.asynccontextmanager
async def caller() -> AsyncIterator[httpx.AsyncClient]:
    """A client without a limit of connections."""
    async with httpx.AsyncClient(timeout=_TIMEOUT, limits=httpx.Limits(max_connections=None)) as client:
        yield client


async def under_load(server: Server, texts: Texts, callers: int, seconds: float) -> dict[str, Any]:
    """Callers that send their next call when the last one was answered."""
    latencies: dict[str, list[float]] = {"query": [], "document": []}
    errors: list[str] = []
    memory: list[float] = []
    until = time.monotonic() + seconds

    async def calls(client: httpx.AsyncClient, number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < until:
            kind = "document" if draw.random() < DOCUMENT_SHARE else "query"
            many = kind == "document"
            sent = draw.sample(texts.documents, DOCUMENTS_A_CALL) if many else [draw.choice(texts.questions)]
            began = time.perf_counter()
            try:
                await ask(client, server, sent, input_type=kind)
            except httpx.HTTPError as error:
                errors.append(repr(error))
            else:
                latencies[kind].append(time.perf_counter() - began)

    async def watch() -> None:
        while time.monotonic() < until:
            memory.append(server.memory())
            await asyncio.sleep(min(1.0, seconds / 20))

    async with caller() as client:
        await asyncio.gather(watch(), *(calls(client, number) for number in range(callers)))
    thirds = [statistics.median(part) for part in np.array_split(np.array(memory), 3)]
    found: dict[str, Any] = {"callers": callers, "seconds": seconds, "errors": len(errors), "first_errors": errors[:3]}
    found["memory_mib_first_middle_last_third"] = [round(value) for value in thirds]
    for kind, values in latencies.items():
        p50, p99 = np.percentile(values, [50, 99]) * 1000 if values else (float("nan"), float("nan"))
        found[kind] = {"calls": len(values), "p50_ms": round(p50), "p99_ms": round(p99)}
    return found


async def documents_a_second(server: Server, texts: Texts, seconds: float, seed: int) -> float:
    """Documents a second with a few callers that send batches."""
    draw, done, began = random.Random(seed), 0, time.perf_counter()

    async def calls(client: httpx.AsyncClient) -> None:
        nonlocal done
        while time.perf_counter() - began < seconds:
            await ask(client, server, draw.sample(texts.documents, BULK_DOCUMENTS))
            done += BULK_DOCUMENTS

    async with caller() as client:
        await asyncio.gather(*(calls(client) for _ in range(BULK_CALLERS)))
    return done / (time.perf_counter() - began)


async def compare_documents(mine: Server, other: Server, texts: Texts, seconds: float, repeats: int) -> dict[str, Any]:
    """Ours and the peer in turn, each for its share of the time, after a check that the vectors are the same."""
    async with caller() as client:
        first, second = [await ask(client, each, texts.documents[:8]) for each in (mine, other)]
    cosines = (first * second).sum(axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    if cosines.min() < 0.9999:
        raise RuntimeError(f"the peer's vectors are others (cosine {cosines.min():.4f}): are these the same weights?")
    share = seconds / (2 * repeats)
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    for repeat in range(repeats):
        for name, server in (("ours", mine), ("peer", other)):
            rates[name].append(await documents_a_second(server, texts, share, repeat))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "documents_a_second": {name: round(value, 1) for name, value in medians.items()},
        "times_as_fast": round(medians["ours"] / medians["peer"], 2),
        "runs": {name: [round(value, 1) for value in values] for name, values in rates.items()},
    }


async def compare_questions(server: Server, texts: Texts, repeats: int) -> dict[str, Any]:
    """Questions at once, and one after another."""
    at_once, in_turn = [], []
    async with caller() as client:
        for repeat in range(repeats):
            asked = texts.questions[repeat * QUESTIONS_AT_ONCE :][:QUESTIONS_AT_ONCE]
            began = time.perf_counter()
            await asyncio.gather(*(ask(client, server, [text], input_type="query") for text in asked))
            between = time.perf_counter()
            for text in asked:
                await ask(client, server, [text], input_type="query")
            at_once.append(between - began)
            in_turn.append(time.perf_counter() - between)
    ratio = statistics.median(in_turn) / statistics.median(at_once)
    return {
        "questions": QUESTIONS_AT_ONCE,
        "at_once_s": round(statistics.median(at_once), 3),
        "in_turn_s": round(statistics.median(in_turn), 3),
        "times_as_fast": round(ratio, 2),
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for serve.json, made if missing")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--model", default="searchr3", help="alias, folder or hub id (default: searchr3)")
    parser.add_argument("--callers", type=int, default=64, help="at once, in the part load (default: 64)")
    parser.add_argument("--seconds", type=float, default=300.0, help="for each of load and documents (default: 300)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side (default: 5)")
    parser.add_argument("--peer-url", help="a server of OpenAI's protocol with the same weights, up to /v1")
    parser.add_argument("--peer-model", default="stock", help="the model's name there (default: stock)")
    return parser


def main() -> None:
    """Run the parts, and write what was found after each."""
    args = arguments().parse_args()
    texts = Texts.of_python()
    found: dict[str, Any] = {"machine": machine_description(), "model": args.model}
    with ours(args.model) as mine:
        for part in args.only:
            print(f"{part} ...", flush=True)
            if part == "load":
                found[part] = asyncio.run(under_load(mine, texts, args.callers, args.seconds))
            elif part == "documents":
                with peer(args) as other:
                    found[part] = asyncio.run(compare_documents(mine, other, texts, args.seconds, args.repeats))
            else:
                found[part] = asyncio.run(compare_questions(mine, texts, args.repeats))
            print(found[part], flush=True)
            write_json(args.out / "serve.json", found)


if __name__ == "__main__":
    main()
