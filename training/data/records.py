"""What a training record is, its file, and what makes a record useless.

A record is one line of a JSONL file, plain or gzip::

    {"query": "...", "positives": ["...", ...], "negatives": ["...", ...], "reasoning": "...", "source": "..."}

``query`` and ``positives`` are required; ``source`` is the file's name where it is missing. A line that is not a
record (broken JSON, a wrong type, an empty text, no positives, a lone surrogate) is a ``DataError`` that names file
and line. A record or a text that cannot teach anything is no error: ``clean`` and ``deduplicate`` drop and count it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from searchr3_embed.adapt.same_text import document_key, query_key
from searchr3_embed.files import replacing
from training.data.lines import DataError, check_text, parse_json, parse_lines, shown


@dataclass(frozen=True)
class Record:
    """A query with the documents that answer it and, where known, some that do not.

    Attributes:
        query: The question or claim.
        positives: Documents that answer it; at least one.
        negatives: Documents that look alike and do not answer it; may be empty.
        source: Where it comes from.
        reasoning: What a model should write before it embeds the query: None where it is not known, "" where it should
            end its reasoning at once.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    source: str
    reasoning: str | None = None


def read_records(path: Path, skip_bad: Counter[str] | None = None) -> list[Record]:
    """Reads one JSONL(.gz) file as it stands.

    Args:
        path: The file.
        skip_bad: Counts lines that are not records and leaves them out; None raises the first error.

    Raises:
        DataError: It is missing, unreadable or empty, or a line is not a record; the message names file and line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")

    def parse(where: str, line: str) -> Record:
        return parse_record(where, parse_json(where, line), stem_of(path))

    records = list(parse_lines(path, parse, skip_bad))
    if not records:
        raise DataError(f"{path}: empty; expected one JSON record a line")
    return records


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes records as JSONL, gzipped when the name ends in .gz: the whole file or nothing."""
    content = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records).encode()
    with replacing(path) as file:
        # Without a time stamp equal records give equal files.
        file.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def stem_of(path: Path) -> str:
    """The source's name in the name of its file."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def parse_record(where: str, row: Any, source: str) -> Record:
    """Turns a JSON value into a record.

    Args:
        where: Its place, for the message.
        row: The value.
        source: Name of the source, unless the row names one.

    Raises:
        DataError: It is none.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a record, an object with query and positives, found {type(row).__name__}")
    positives = _texts(where, row, "positives")
    if not positives:
        raise DataError(f"{where}: 'positives' is empty; a record needs at least one")
    negatives = () if row.get("negatives") is None else _texts(where, row, "negatives")
    reasoning, origin = row.get("reasoning"), row.get("source")
    return Record(
        check_text(where, "query", row.get("query")),
        positives,
        negatives,
        source if origin is None else check_text(where, "source", origin),
        None if reasoning is None else check_text(where, "reasoning", reasoning, may_be_empty=True),
    )


def _texts(where: str, row: dict[str, Any], name: str) -> tuple[str, ...]:
    values = row.get(name)
    if not isinstance(values, list):
        raise DataError(f"{where}: {name!r} must be a list of texts, found {shown(values)}")
    return tuple(check_text(where, name, value) for value in values)


def clean(record: Record, counts: Counter[str]) -> Record | None:
    """Leaves out what cannot teach anything; None when no positive is left.

    That is a repeated positive or negative, a positive that says what the query says, and a negative that is also a
    positive.

    Args:
        record: As read.
        counts: Counts what is left out.
    """
    query, repeats = query_key(record.query), Counter[str]()
    positives: dict[str, str] = {}
    for text in record.positives:
        key = document_key(text)
        # Lengths first, for it is cheap: a document is seldom as short as its query.
        if len(key) <= 4 * len(record.query) and query_key(key) == query:
            repeats["positive equal to the query"] += 1
        elif key in positives:
            repeats["repeated positive"] += 1
        else:
            positives[key] = text
    if not positives:
        counts["record whose only positive is the query"] += 1
        return None
    negatives: dict[str, str] = {}
    for text in record.negatives:
        key = document_key(text)
        if key in positives:
            repeats["negative equal to a positive"] += 1
        elif key in negatives:
            repeats["repeated negative"] += 1
        else:
            negatives[key] = text
    counts.update(repeats)
    return replace(record, positives=tuple(positives.values()), negatives=tuple(negatives.values()))


def deduplicate(records: Iterable[Record], seen: set[bytes] | None = None) -> list[Record]:
    """Keeps the first of the records with one query and one set of positives.

    Args:
        records: In order of preference.
        seen: Digests of what was kept before; those of the kept records are added.
    """
    seen = set() if seen is None else seen
    kept = []
    for record in records:
        key = json.dumps([query_key(record.query), *sorted({document_key(text) for text in record.positives})])
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            kept.append(record)
    return kept
