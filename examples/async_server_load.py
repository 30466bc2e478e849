"""64 callers at once, as a server has them: concurrent calls run as one batch and the event loop stays free.

python examples/async_server_load.py
"""

import asyncio
import time

import numpy as np

from searchr3_embed import ReasoningEmbedder

CALLERS = 64
WORDS = ["river", "glacier", "harbour", "orchard", "violin", "compiler", "enzyme", "treaty"]
QUESTIONS = [f"what does a {WORDS[n % 8]} have to do with a {WORDS[n // 8]}?" for n in range(CALLERS)]


async def call(embedder: ReasoningEmbedder, question: str) -> float:
    """One request; returns its latency in milliseconds."""
    began = time.perf_counter()
    await embedder.aencode_query(question)
    return 1000 * (time.perf_counter() - began)


async def main() -> None:
    embedder = ReasoningEmbedder("searchr3")
    await call(embedder, "warm up")

    began = time.perf_counter()
    one_by_one = [await call(embedder, question) for question in QUESTIONS]
    sequential = time.perf_counter() - began

    began = time.perf_counter()
    together = await asyncio.gather(*(call(embedder, question) for question in QUESTIONS))
    concurrent = time.perf_counter() - began

    for name, latencies, seconds in (("one by one", one_by_one, sequential), ("all at once", together, concurrent)):
        p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
        print(
            f"{name:12} {CALLERS / seconds:6.0f} calls/s   p50 {p50:6.1f} ms   p95 {p95:6.1f} ms   p99 {p99:6.1f} ms"
        )


if __name__ == "__main__":
    asyncio.run(main())
