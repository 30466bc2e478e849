"""One epoch of training: how often each source is drawn, in groups of one source each."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from training.data.records import Record


def mix(
    sources: Mapping[str, Sequence[Record]], weights: Mapping[str, float], group_size: int, seed: int
) -> list[list[Record]]:
    """One epoch in shuffled groups of one source each: a source ``weight`` times, a fraction being a random part."""
    rng = random.Random(seed)
    groups = []
    for source, records in sources.items():
        whole, part = divmod(weights[source], 1)
        drawn = [record for _ in range(int(whole)) for record in rng.sample(records, len(records))]
        drawn += rng.sample(records, round(part * len(records)))
        # The last, short group of a source is left out; the next epoch draws anew.
        groups += [drawn[i : i + group_size] for i in range(0, len(drawn) - group_size + 1, group_size)]
    rng.shuffle(groups)
    return groups
