"""From the sources that a configuration names to checked, unique records; evaluation queries are kept out.

What ``load`` reads is named by *specs*:

    scifact                    <folder>/scifact.jsonl[.gz]
    path/to/rows.jsonl.gz      a file anywhere
    path/to/beir[:split]       a BEIR-layout folder (see training/data/beir.py): the queries of a split (default:
                               train) with their relevant documents as positives, and those judged not relevant as
                               negatives
    hub:name[[:config]:split]  a Hugging Face dataset, or a local folder that ``datasets`` reads (default: train)

What is wrong and what is only useless are two things. A line that is not a record is a ``DataError`` that names file
and line, unless bad lines are to be skipped; then they are counted. A record or a text that cannot teach anything is
dropped and counted: a repeated record, a repeated positive, a positive that says what the query says, a negative that
is also a positive, an empty document of a BEIR folder or a dataset. A record left without positives is dropped, a
source left without records is a ``DataError``.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from training.data.beir import read_beir
from training.data.lines import BAD_LINE, DataError, shown
from training.data.overlap import Guard
from training.data.records import Record, clean, deduplicate, parse_record, read_records, stem_of

logger = logging.getLogger(__name__)

HUB = "hub:"
EMPTY_TEXT, EMPTY_RECORD = "empty text", "record with an empty text only"
# Column names of datasets, lower case, the likeliest first.
QUERY_COLUMNS = ("query", "question", "anchor")
POSITIVE_COLUMNS = ("positives", "positive", "pos", "answers", "answer")
NEGATIVE_COLUMN = re.compile(r"negatives|neg|negative(_\d+)?")


@dataclass(frozen=True)
class Loaded:
    """What ``load`` gives.

    Attributes:
        sources: Spec -> its records, in the order of the specs.
        dropped: Spec -> reason -> number of records, texts or lines dropped for it.
    """

    sources: dict[str, list[Record]]
    dropped: dict[str, Counter[str]]


def load(
    specs: Mapping[str, float],
    folder: Path | None,
    *,
    exclude: Sequence[Path] = (),
    strict: bool = False,
    skip_bad: bool = False,
) -> Loaded:
    """Reads sources, cleans them, and keeps evaluation queries out of them.

    No record is ever returned whose query equals (by letters and digits, in lower case) or nearly equals (Jaccard of
    the words at least 0.85) an evaluation query of ``exclude``: it is dropped with a warning, or raises with
    ``strict``. A record with the query and the positives of an earlier one, of any source, is dropped. What was read,
    kept and dropped is logged as one table.

    Args:
        specs: What to read, see the module docstring, with the weights that ``mix`` takes; earlier sources win.
        folder: Where sources that are given by name alone are looked up.
        exclude: BEIR-layout folders, or folders of them; none of their queries is trained on, but for those that only
            a train split judges.
        strict: Raise for a training query that is an evaluation query, or close to one, instead of dropping it.
        skip_bad: Drop and count lines that are not records instead of raising for the first of them.

    Raises:
        DataError: A source is missing or broken or has no records left, or ``strict`` found an evaluation query.
    """
    for spec, weight in specs.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise DataError(f"source {spec!r}: the weight must be a number above 0, found {weight!r}")
    guard = Guard.of_folders(exclude)
    sources: dict[str, list[Record]] = {}
    dropped: dict[str, Counter[str]] = {}
    sizes: dict[str, int] = {}
    seen: set[bytes] = set()
    for spec in tqdm(specs, desc="Reading training data", unit="source", disable=None):
        counts = dropped[spec] = Counter()
        records = read_source(spec, folder, counts, skip_bad)
        sizes[spec] = len(records)
        cleaned = [kept for record in records if (kept := clean(record, counts))]
        guarded = _guarded(spec, cleaned, guard, strict, counts)
        sources[spec] = deduplicate(guarded, seen)
        counts["repeated record"] += len(guarded) - len(sources[spec])
        if not sources[spec]:
            raise DataError(f"source {spec!r}: nothing left of {sizes[spec]} records; dropped: {_reasons(counts)}")
    dropped = {spec: +counts for spec, counts in dropped.items()}
    logger.info("%s", _table(sizes, sources, dropped))
    return Loaded(sources, dropped)


def _table(
    sizes: Mapping[str, int], sources: Mapping[str, Sequence[Record]], dropped: Mapping[str, Counter[str]]
) -> str:
    rows = [(spec, sizes[spec], len(sources[spec]), _reasons(dropped[spec])) for spec in sources]
    total = ("total", sum(sizes.values()), sum(map(len, sources.values())), "")
    return tabulate(
        [*rows, total],
        headers=("training data", "read", "kept", "dropped"),
        tablefmt="plain",
        disable_numparse=True,  # a source may be called 007
        colalign=("left", "right", "right", "left"),
    )


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common() if count)


def read_source(spec: str, folder: Path | None, counts: Counter[str], skip_bad: bool = False) -> list[Record]:
    """Reads the records behind a spec as they stand.

    Args:
        spec: See the module docstring.
        folder: Where names are looked up.
        counts: Counts what a BEIR folder or a dataset holds that is no text, and bad lines that are skipped.
        skip_bad: Skip lines that are not records instead of raising for the first of them.

    Raises:
        DataError: There is no such source, or it is broken.
    """
    skipped = counts if skip_bad else None
    if spec.startswith(HUB):
        return _read_hub(spec, counts, skip_bad)
    if folder is not None and (path := _named_file(folder, spec)):
        return read_records(path, skipped)
    path = Path(spec)
    if path.is_file() or spec.endswith((".jsonl", ".jsonl.gz")):
        return read_records(path, skipped)
    split = "train"
    if not path.is_dir() and ":" in spec:
        before, _, split = spec.rpartition(":")
        path = Path(before)
    if path.is_dir():
        return _read_beir(path, split, counts, skipped)
    held = f"{folder} holds {sorted(_names(folder))}" if folder else "no folder was given to look up names in"
    raise DataError(
        f"source {spec!r}: expected a name ({held}), a .jsonl or .jsonl.gz file, a BEIR-layout folder, "
        "or hub:name for a Hugging Face dataset"
    )


def source_name(spec: str) -> str:
    """What a spec is called without its folders, ending, prefix and split: the name of what is made from it."""
    return stem_of(Path(spec.removeprefix(HUB).split(":")[0]))


def _named_file(folder: Path, name: str) -> Path | None:
    found = [path for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if path.is_file()]
    if len(found) == 2:
        raise DataError(f"{folder}: holds both {found[0].name} and {found[1].name}; remove one")
    return found[0] if found else None


def _names(folder: Path) -> set[str]:
    return {stem_of(path) for ending in ("*.jsonl", "*.jsonl.gz") for path in folder.glob(ending)}


def _read_beir(folder: Path, split: str, counts: Counter[str], skip_bad: Counter[str] | None) -> list[Record]:
    data = read_beir(folder, split=split, skip_bad=skip_bad)
    counts.update(data.dangling)
    records = []
    for query, judged in data.qrels.items():
        texts = [(data.documents[document], score > 0) for document, score in judged.items()]
        kept = [(text, relevant) for text, relevant in texts if text.strip()]
        counts[EMPTY_TEXT] += len(texts) - len(kept)
        positives = tuple(text for text, relevant in kept if relevant)
        if positives and data.queries[query].strip():
            negatives = tuple(text for text, relevant in kept if not relevant)
            records.append(Record(data.queries[query], positives, negatives, data.name))
        else:
            counts[EMPTY_RECORD] += 1
    return records


def _read_hub(spec: str, counts: Counter[str], skip_bad: bool) -> list[Record]:
    name, *options = spec.removeprefix(HUB).split(":")
    if not name or len(options) > 2 or not all(options):
        raise DataError(f"source {spec!r}: expected hub:name, hub:name:split or hub:name:config:split")
    from datasets import load_dataset

    *config, split = options or ["train"]
    try:
        rows = load_dataset(name, *config, split=split)  # named by the user  # nosec B615
    except Exception as error:  # connection, unknown name, unknown split: the library raises many types
        raise DataError(f"source {spec!r}: cannot be loaded: {type(error).__name__}: {error}") from error
    query, positives, negatives = _hub_columns(spec, rows.column_names)
    records = []
    for number, row in enumerate(tqdm(rows, desc=f"Reading {spec}", unit="row", disable=None)):
        values = {
            "query": row[query],
            "positives": _filled(row[positives], counts),
            "negatives": [text for column in negatives for text in _filled(row[column], counts)],
            "reasoning": row.get("reasoning") or None,
        }
        if not values["query"] or not values["positives"]:
            counts[EMPTY_RECORD] += 1
            continue
        try:
            records.append(parse_record(f"{spec} row {number}", values, name.rstrip("/").rpartition("/")[2]))
        except DataError:
            if not skip_bad:
                raise
            counts[BAD_LINE] += 1
    return records


def _hub_columns(spec: str, names: Sequence[str]) -> tuple[str, str, list[str]]:
    """The columns of a dataset that hold the query, its positives and its negatives."""
    columns = {column.lower(): column for column in names}
    query = next((columns[column] for column in QUERY_COLUMNS if column in columns), None)
    positives = next((columns[column] for column in POSITIVE_COLUMNS if column in columns), None)
    if query is None or positives is None:
        raise DataError(
            f"source {spec!r}: the columns are {names}; expected a query ({', '.join(QUERY_COLUMNS)}) "
            f"and its positives ({', '.join(POSITIVE_COLUMNS)}), and optionally negatives (negatives, negative, "
            "negative_1, ...) and reasoning"
        )
    return query, positives, [column for low, column in columns.items() if NEGATIVE_COLUMN.fullmatch(low)]


def _filled(value: Any, counts: Counter[str]) -> list[Any]:
    """The texts of a cell, which holds one or a list of them; empty ones are common in datasets, and left out."""
    values = value if isinstance(value, list) else [value]
    filled = [text for text in values if text is not None and not (isinstance(text, str) and not text.strip())]
    counts[EMPTY_TEXT] += len(values) - len(filled)
    return filled


def _guarded(spec: str, records: Sequence[Record], guard: Guard, strict: bool, counts: Counter[str]) -> list[Record]:
    kept, examples = [], []
    for record in records:
        match = guard.match(record.query)
        if match is None:
            kept.append(record)
            continue
        text, name, equal = match
        counts["query equal to an evaluation query" if equal else "query close to an evaluation query"] += 1
        examples.append(f"{shown(record.query)} {'equals' if equal else 'is close to'} {shown(text)} of {name}")
    if examples and strict:
        raise DataError(f"source {spec!r}: {len(examples)} queries must not be trained on: {examples[0]}")
    if examples:
        logger.warning("%s: %d records dropped for an evaluation query: %s", spec, len(examples), examples[0])
    return kept
