"""Fair times: sides of a comparison take turns, and only sides that agree are timed."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.fidelity import cosines

LEAST_COSINE = 0.9999


class DisagreementError(RuntimeError):
    """The sides of a comparison do not compute the same thing, so their times mean nothing."""


def agreement(
    ours: np.ndarray, theirs: np.ndarray, same: np.ndarray, what: str, least: float = LEAST_COSINE
) -> dict[str, Any]:
    """Compares the embeddings of the rows whose tokens are the same on both sides.

    Args:
        ours: Embeddings (rows, d).
        theirs: Embeddings (rows, d).
        same: Which rows have the same token ids, bool (rows,); greedy choices may differ at a near-tie.
        what: Names the comparison in the error.
        least: The least cosine; half precision needs a lower one.

    Raises:
        DisagreementError: No row is the same, or a cosine is below ``least`` or not a number.
    """
    if not same.any():
        raise DisagreementError(f"{what}: no row has the same token ids on both sides")
    lowest = float(cosines(ours[same], theirs[same]).min())
    if not lowest >= least:  # a NaN must not pass
        raise DisagreementError(f"{what}: cosine {lowest:.6f} between the sides, at least {least} is required")
    return {"rows": len(same), "differing_rows": int((~same).sum()), "lowest_cosine": lowest}


def time_in_turn(sides: Mapping[str, Callable[[], Any]], repeats: int, name: str) -> dict[str, list[float]]:
    """Seconds of every call in every repeat; each repeat runs all of them, every second one in reverse order."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    with tqdm(total=repeats * len(sides), desc=name, unit="run", file=sys.stderr) as bar:
        for repeat in range(repeats):
            for side in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
                started = time.perf_counter()
                sides[side]()  # ends with a copy to the CPU on all sides, so a GPU has finished
                seconds[side].append(time.perf_counter() - started)
                bar.update()
    return seconds


def best_of(seconds: Mapping[str, Sequence[float]], side: str) -> str:
    """The variant ``side, batch size N`` with the lowest median: every side is measured at its best batch size."""
    variants = [name for name in seconds if name.rpartition(", ")[0] == side]
    return min(variants, key=lambda name: statistics.median(seconds[name]))


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, least and greatest of some times, and all of them."""
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "all_s": list(seconds),
    }


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Ratio of the medians, and the range of the ratios within one repeat."""
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    return {
        "of_medians": statistics.median(theirs) / statistics.median(ours),
        "min": min(ratios),
        "max": max(ratios),
    }
