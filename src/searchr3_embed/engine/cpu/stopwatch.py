"""How long a call takes, to choose between two ways of computing the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def least_seconds(call: Callable[[], Any], repeats: int = 7) -> float:
    """The shortest time of several calls: the one that other work on the machine disturbed least."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best
