"""Training records: JSONL files of ``{query, positives[], negatives[], source}`` in, checked and mixed records out."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Record:
    """A query with the documents that answer it and, where known, some that do not.

    Attributes:
        query: The question or claim.
        positives: Documents that answer it; at least one.
        negatives: Documents that look alike and do not answer it; may be empty.
        source: Name of the file it came from, without its endings.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    source: str


def open_text(path: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 text file, plain or gzip."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        yield from lines


def read_records(path: Path) -> list[Record]:
    """Reads one JSONL(.gz) file.

    Raises:
        ValueError: A line is not a record; the message names file and line.
    """
    source = path.name.split(".")[0]
    records = []
    for number, line in enumerate(open_text(path), start=1):
        try:
            row = json.loads(line)
            query, positives = row["query"], row["positives"]
            negatives = row.get("negatives") or []
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}:{number} is not a record with query and positives ({error!r}).") from None
        texts = (
            [query, *positives, *negatives] if isinstance(positives, list) and isinstance(negatives, list) else [None]
        )
        if not positives or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"{path}:{number}: query, positives and negatives must hold non-empty texts.")
        records.append(Record(query, tuple(positives), tuple(negatives), source))
    return records


def read_folder(folder: Path, weights: Mapping[str, float]) -> dict[str, list[Record]]:
    """Reads every source named in ``weights`` from ``<folder>/<source>.jsonl[.gz]``.

    Raises:
        FileNotFoundError: A named source has no file; the message lists what is there.
    """
    found = {path.name.split(".")[0]: path for path in sorted(folder.glob("*.jsonl*"))}
    missing = sorted(set(weights) - set(found))
    if missing:
        raise FileNotFoundError(f"No file for the sources {missing} in {folder}; it holds {sorted(found)}.")
    return {source: read_records(found[source]) for source in weights}


def split_held_out(records: Sequence[Record], one_in: int, limit: int) -> tuple[list[Record], list[Record]]:
    """Splits by a hash of the query into (training, held out), so that the split never depends on order or seed."""
    held_out = [r for r in records if _hash(r.query) % one_in == 0][:limit]
    chosen = {r.query for r in held_out}
    return [r for r in records if r.query not in chosen], held_out


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


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
