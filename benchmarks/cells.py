"""One comparison: our side and its peers on the same texts, checked against each other, then timed in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers import NotAvailableError
from benchmarks.timing import LEAST_COSINE, agreement, best_of, speedup, spread, time_in_turn

Outcome = tuple[list[list[int]] | None, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to embed the texts of a comparison.

    Attributes:
        name: As the report shows it.
        check: Takes a batch size; returns the reasoning ids, or None where there is no choice of tokens, and the
            embeddings. The untimed call, which warms the side up and is compared.
        timed: Takes a batch size; what is timed. None times ``check``.
        batch_sizes: Each is tried, the best one counts.
    """

    name: str
    check: Callable[[int], Outcome]
    timed: Callable[[int], Any] | None = None
    batch_sizes: Sequence[int] = (32,)


def compare(
    title: str, ours: Side, peers: Sequence[Side], count: int, repeats: int, least_cosine: float = LEAST_COSINE
) -> list[dict[str, Any]]:
    """One cell per peer: agreement, times of both sides at their best batch sizes, speed-up.

    Args:
        title: Names the comparison in errors and on the progress bar.
        ours: The side that the peers are compared with.
        peers: The other sides; one that is not available becomes a cell that says why.
        count: Number of texts.
        repeats: Timed runs of each side.
        least_cosine: What agreement needs.

    Raises:
        DisagreementError: A peer computes something else; no time is taken then.
    """
    reference = ours.check(ours.batch_sizes[0])
    sides: dict[str, Callable[[], Any]] = {}
    _add(sides, ours)
    for size in ours.batch_sizes[1:]:
        _agree(reference, ours.check(size), f"{title}: {ours.name}, batch size {size}", least_cosine)
    cells: list[dict[str, Any]] = []
    for peer in peers:
        cell: dict[str, Any] = {"peer": peer.name, "items": count}
        try:
            found = [
                _agree(reference, peer.check(size), f"{title}: {peer.name}, batch size {size}", least_cosine)
                for size in peer.batch_sizes
            ]
        except NotAvailableError as error:
            cell["unavailable"] = str(error)
        else:
            # What is reported is the worst of all batch sizes.
            cell["lowest_cosine"] = min(one["lowest_cosine"] for one in found)
            cell["differing_rows"] = max(one["differing_rows"] for one in found)
            _add(sides, peer)
        cells.append(cell)
    available = [cell for cell in cells if "unavailable" not in cell]
    if not available:
        return cells
    seconds = time_in_turn(sides, repeats, title)
    mine = best_of(seconds, ours.name)
    for cell in available:
        theirs = best_of(seconds, cell["peer"])
        cell["ours"] = {**spread(seconds[mine]), "batch_size": int(mine.rpartition(" ")[2])}
        cell["theirs"] = {**spread(seconds[theirs]), "batch_size": int(theirs.rpartition(" ")[2])}
        cell["speedup"] = speedup(seconds[mine], seconds[theirs])
    return cells


def _add(sides: dict[str, Callable[[], Any]], side: Side) -> None:
    for size in side.batch_sizes:
        sides[f"{side.name}, batch size {size}"] = partial(side.timed or side.check, size)


def _agree(ours: Outcome, theirs: Outcome, what: str, least: float) -> dict[str, Any]:
    same = np.ones(len(ours[1]), dtype=bool)
    if ours[0] is not None and theirs[0] is not None:
        same = np.array([a == b for a, b in zip(ours[0], theirs[0], strict=True)])
    return agreement(ours[1], theirs[1], same, what, least)
