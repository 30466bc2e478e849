"""Training records: from files, BEIR folders and Hugging Face datasets to checked, unique, mixed records.

A record is one line of a JSONL file, plain or gzip::

    {"query": "...", "positives": ["...", ...], "negatives": ["...", ...], "reasoning": "...", "source": "..."}

``query`` and ``positives`` are required; ``source`` is the file's name where it is missing. What ``load`` reads is
named by *specs*:

    scifact                    <folder>/scifact.jsonl[.gz]
    path/to/rows.jsonl.gz      a file anywhere
    path/to/beir[:split]       a BEIR-layout folder (see training/beir.py): the queries of a split (default: train)
                               with their relevant documents as positives, and those judged not relevant as negatives
    hub:name[[:config]:split]  a Hugging Face dataset, or a local folder that ``datasets`` reads (default: train)

What is wrong and what is only useless are two things. A line that is not a record (broken JSON, a wrong type, an empty
text, no positives, a lone surrogate) is a ``DataError`` that names file and line. A record or a text that cannot teach
anything is dropped and counted: a repeated record, a repeated positive, a positive that says what the query says, a
negative that is also a positive, an empty document of a BEIR folder or a dataset. A record left without positives is
dropped, a source left without records is a ``DataError``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import os
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.data.beir import DataError, beir_folders, evaluation_queries, read_beir, read_lines

logger = logging.getLogger("training.data.records")

HUB = "hub:"
# A training query is close to an evaluation query when they share at least this part of their words (Jaccard).
CLOSE = 0.85
# Column names of datasets, lower case, the likeliest first.
QUERY_COLUMNS = ("query", "question", "anchor")
POSITIVE_COLUMNS = ("positives", "positive", "pos", "answers", "answer")
NEGATIVE_COLUMN = re.compile(r"negatives|neg|negative(_\d+)?")


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


@dataclass(frozen=True)
class Loaded:
    """What ``load`` gives.

    Attributes:
        sources: Spec -> its records, in the order of the specs.
        dropped: Spec -> reason -> number of records or texts dropped for it.
    """

    sources: dict[str, list[Record]]
    dropped: dict[str, Counter[str]]


def load(
    specs: Mapping[str, float],
    folder: Path | None,
    *,
    exclude: Sequence[Path] = (),
    strict: bool = False,
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
        records = read_source(spec, folder, counts)
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
    rows = [(spec, str(sizes[spec]), str(len(sources[spec])), _reasons(dropped[spec])) for spec in sources]
    total = (str(sum(sizes.values())), str(sum(map(len, sources.values()))))
    rows = [("training data", "read", "kept", "dropped"), *rows, ("total", *total, "")]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    name, *numbers = widths
    return "\n".join(
        "  ".join([row[0].ljust(name), *(row[i + 1].rjust(width) for i, width in enumerate(numbers)), row[3]]).rstrip()
        for row in rows
    )


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common() if count)


def read_source(spec: str, folder: Path | None, counts: Counter[str]) -> list[Record]:
    """Reads the records behind a spec as they stand.

    Args:
        spec: See the module docstring.
        folder: Where names are looked up.
        counts: Counts what a BEIR folder or a dataset holds that is no text.

    Raises:
        DataError: There is no such source, or it is broken.
    """
    if spec.startswith(HUB):
        return _read_hub(spec, counts)
    if folder is not None and (path := _named_file(folder, spec)):
        return read_records(path)
    path = Path(spec)
    if path.is_file() or spec.endswith((".jsonl", ".jsonl.gz")):
        return read_records(path)
    split = "train"
    if not path.is_dir() and ":" in spec:
        before, _, split = spec.rpartition(":")
        path = Path(before)
    if path.is_dir():
        return _read_beir(path, split, counts)
    held = f"{folder} holds {sorted(_names(folder))}" if folder else "no folder was given to look up names in"
    raise DataError(
        f"source {spec!r}: expected a name ({held}), a .jsonl or .jsonl.gz file, a BEIR-layout folder, "
        "or hub:name for a Hugging Face dataset"
    )


def read_records(path: Path) -> list[Record]:
    """Reads one JSONL(.gz) file as it stands.

    Raises:
        DataError: It is missing, unreadable or empty, or a line is not a record; the message names file and line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    records = []
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where}: not JSON: {error}") from None
        records.append(_parse(where, row, stem_of(path)))
    if not records:
        raise DataError(f"{path}: empty; expected one JSON record a line")
    return records


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes records as JSONL, gzipped when the name ends in .gz: the whole file or nothing."""
    content = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    # Without a time stamp equal records give equal files.
    partial.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    os.replace(partial, path)


def read_folder(folder: Path, names: Iterable[str]) -> dict[str, list[Record]]:
    """Reads ``<folder>/<name>.jsonl[.gz]`` for every name, as it stands.

    Raises:
        DataError: A named source has no file (the message lists what is there), or it is broken.
    """
    paths = {name: _named_file(folder, name) for name in names}
    if missing := sorted(name for name, path in paths.items() if path is None):
        raise DataError(f"{folder}: no file for the sources {missing}; it holds {sorted(_names(folder))}")
    return {name: read_records(path) for name, path in paths.items() if path}


def _named_file(folder: Path, name: str) -> Path | None:
    found = [path for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if path.is_file()]
    if len(found) == 2:
        raise DataError(f"{folder}: holds both {found[0].name} and {found[1].name}; remove one")
    return found[0] if found else None


def _names(folder: Path) -> set[str]:
    return {stem_of(path) for ending in ("*.jsonl", "*.jsonl.gz") for path in folder.glob(ending)}


def stem_of(path: Path) -> str:
    """The source's name in the name of its file."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def _parse(where: str, row: Any, source: str) -> Record:
    """Turns a JSON value into a record.

    Raises:
        DataError: It is none.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a record, an object with query and positives, found {type(row).__name__}")

    def text(key: str, value: Any, may_be_empty: bool = False) -> str:
        if not isinstance(value, str) or not (value.strip() or may_be_empty):
            raise DataError(f"{where}: {key!r} must hold non-empty text, found {_shown(value)}")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair; no tokenizer takes it
            raise DataError(f"{where}: {key!r} holds a lone surrogate, not valid Unicode: {error.reason}") from None
        return value

    def texts(key: str) -> tuple[str, ...]:
        values = row.get(key)
        if values is None and key == "negatives":
            return ()
        if not isinstance(values, list):
            raise DataError(f"{where}: {key!r} must be a list of texts, found {_shown(values)}")
        return tuple(text(key, value) for value in values)

    positives = texts("positives")
    if not positives:
        raise DataError(f"{where}: 'positives' is empty; a record needs at least one")
    reasoning, origin = row.get("reasoning"), row.get("source")
    return Record(
        text("query", row.get("query")),
        positives,
        texts("negatives"),
        source if origin is None else text("source", origin),
        None if reasoning is None else text("reasoning", reasoning, may_be_empty=True),
    )


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _read_beir(folder: Path, split: str, counts: Counter[str]) -> list[Record]:
    data = read_beir(folder, split=split)
    records = []
    for query, judged in data.qrels.items():
        texts = [(data.documents[document], score > 0) for document, score in judged.items()]
        kept = [(text, relevant) for text, relevant in texts if text.strip()]
        counts["empty text"] += len(texts) - len(kept)
        positives = tuple(text for text, relevant in kept if relevant)
        if positives and data.queries[query].strip():
            negatives = tuple(text for text, relevant in kept if not relevant)
            records.append(Record(data.queries[query], positives, negatives, data.name))
        else:
            counts["record with an empty text only"] += 1
    return records


def _read_hub(spec: str, counts: Counter[str]) -> list[Record]:
    name, *options = spec.removeprefix(HUB).split(":")
    if not name or len(options) > 2 or not all(options):
        raise DataError(f"source {spec!r}: expected hub:name, hub:name:split or hub:name:config:split")
    from datasets import load_dataset

    *config, split = options or ["train"]
    try:
        rows = load_dataset(name, *config, split=split)
    except Exception as error:  # connection, unknown name, unknown split: the library raises many types
        raise DataError(f"source {spec!r}: cannot be loaded: {type(error).__name__}: {error}") from error
    columns = {column.lower(): column for column in rows.column_names}
    query = next((columns[column] for column in QUERY_COLUMNS if column in columns), None)
    positives = next((columns[column] for column in POSITIVE_COLUMNS if column in columns), None)
    negatives = [column for low, column in columns.items() if NEGATIVE_COLUMN.fullmatch(low)]
    if query is None or positives is None:
        raise DataError(
            f"source {spec!r}: the columns are {rows.column_names}; expected a query ({', '.join(QUERY_COLUMNS)}) "
            f"and its positives ({', '.join(POSITIVE_COLUMNS)}), and optionally negatives (negatives, negative, "
            "negative_1, ...) and reasoning"
        )
    records = []
    for number, row in enumerate(tqdm(rows, desc=f"Reading {spec}", unit="row", disable=None)):
        values = {
            "query": row[query],
            "positives": _filled(row[positives], counts),
            "negatives": [text for column in negatives for text in _filled(row[column], counts)],
            "reasoning": row.get("reasoning") or None,
        }
        if values["query"] and values["positives"]:
            records.append(_parse(f"{spec} row {number}", values, name.rstrip("/").rpartition("/")[2]))
        else:
            counts["record with an empty text only"] += 1
    return records


def _filled(value: Any, counts: Counter[str]) -> list[Any]:
    """The texts of a cell, which holds one or a list of them; empty ones are common in datasets, and left out."""
    values = value if isinstance(value, list) else [value]
    filled = [text for text in values if text is not None and not (isinstance(text, str) and not text.strip())]
    counts["empty text"] += len(values) - len(filled)
    return filled


def words(text: str) -> list[str]:
    """The runs of letters and digits of a text, lower case."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())


def query_key(text: str) -> str:
    """What queries are compared by: letters and digits in lower case; a query of signs only stays as it is."""
    return "".join(words(text)) or text.strip()


def document_key(text: str) -> str:
    """What documents are compared by: everything but white space; code with another operator is another document."""
    return " ".join(text.split())


def clean(record: Record, counts: Counter[str]) -> Record | None:
    """Leaves out what cannot teach anything, see the module docstring; None when no positive is left."""
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


class Guard:
    """Finds queries that equal or nearly equal one of a given set.

    Near equality needs no comparison with every query: two sets of words with a Jaccard of at least ``CLOSE`` share
    one of their few rarest words (prefix filtering), so an index of those words gives all candidates.

    Args:
        queries: Evaluation query -> name of its set.
    """

    def __init__(self, queries: Mapping[str, str]) -> None:
        self.queries = list(queries.items())
        self._equal = {query_key(text): i for i, (text, _) in enumerate(self.queries)}
        self._words = [set(words(text)) for text, _ in self.queries]
        self._frequency = Counter(word for some in self._words for word in some)
        self._index: dict[str, list[int]] = defaultdict(list)
        for i, some in enumerate(self._words):
            for word in self._rarest(some):
                self._index[word].append(i)

    @classmethod
    def of_folders(cls, paths: Iterable[Path]) -> Guard:
        """Takes the evaluation queries of BEIR-layout folders, or of folders of them."""
        folders = [folder for path in paths for folder in beir_folders([Path(path)])]
        return cls(
            {text: folder.resolve().name for folder in folders for text in evaluation_queries(folder) if text.strip()}
        )

    def match(self, query: str) -> tuple[str, str, bool] | None:
        """The evaluation query that a training query is too close to, with its set and whether they are equal."""
        found = self._equal.get(query_key(query))
        if found is not None:
            return *self.queries[found], True
        mine = set(words(query))
        for word in self._rarest(mine):
            for i in self._index.get(word, ()):
                if close(mine, self._words[i]):
                    return *self.queries[i], False
        return None

    def _rarest(self, some: set[str]) -> list[str]:
        # At least ceil(CLOSE * n) of n words are shared, so one of any n - ceil(CLOSE * n) + 1 is.
        shared = math.ceil(CLOSE * len(some) - 1e-9)
        return sorted(some, key=lambda word: (self._frequency[word], word))[: len(some) - shared + 1]


def close(one: set[str], other: set[str]) -> bool:
    """Whether two sets of words have a Jaccard of at least ``CLOSE``; empty ones have not."""
    shared = len(one & other)
    return shared > 0 and shared >= CLOSE * (len(one) + len(other) - shared) - 1e-9


def _guarded(spec: str, records: Sequence[Record], guard: Guard, strict: bool, counts: Counter[str]) -> list[Record]:
    kept, examples = [], []
    for record in records:
        match = guard.match(record.query)
        if match is None:
            kept.append(record)
            continue
        text, name, equal = match
        counts["query equal to an evaluation query" if equal else "query close to an evaluation query"] += 1
        examples.append(f"{_shown(record.query)} {'equals' if equal else 'is close to'} {_shown(text)} of {name}")
    if examples and strict:
        raise DataError(f"source {spec!r}: {len(examples)} queries must not be trained on: {examples[0]}")
    if examples:
        logger.warning("%s: %d records dropped for an evaluation query: %s", spec, len(examples), examples[0])
    return kept


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
