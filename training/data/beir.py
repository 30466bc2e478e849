"""Reading retrieval sets in the BEIR layout, with errors that name the file and the line.

A set is a folder::

    corpus.jsonl[.gz]     {"_id", "title", "text"}     title may be missing or ""
    queries.jsonl[.gz]    {"_id", "text"}
    qrels/<split>.tsv     query-id <tab> corpus-id <tab> score, with or without a header
    qrels.tsv             the same for the test split; qrels_<split>.tsv for any other
    queries_150.txt       optional: the query ids of the small run, one a line (test split only)
    docs_small.txt        optional: the document ids of the small run, one a line
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL_QUERIES = "queries_150.txt"
SMALL_DOCUMENTS = "docs_small.txt"


class DataError(ValueError):
    """A file or a record that cannot be used; the message names the file and, where there is one, the line."""


@dataclass(frozen=True)
class BeirData:
    """One retrieval set.

    Attributes:
        name: The folder's name.
        documents: Document id -> "title text", stripped, in the order of the corpus.
        queries: Query id -> text: exactly the queries that have a relevant document.
        qrels: Query id -> document id -> judged relevance (0 or less: judged, not relevant).
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def beir_folders(paths: list[Path]) -> list[Path]:
    """Expands folders that hold several sets, and checks that set names are unique.

    Args:
        paths: Each a set, or a folder of sets.

    Returns:
        The folders of the sets; those of one parent sorted by name.

    Raises:
        DataError: A path is not a folder, holds no set, or two sets have the same name.
    """
    folders: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise DataError(f"{path}: not a folder; expected a BEIR-layout folder or a folder of such folders")
        if _find(path, "corpus") is not None:
            folders.append(path)
            continue
        children = sorted(child for child in path.iterdir() if child.is_dir() and _find(child, "corpus") is not None)
        if not children:
            raise DataError(f"{path}: no corpus.jsonl or corpus.jsonl.gz here nor in the folders directly below")
        folders += children
    names = [folder.resolve().name for folder in folders]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"set given twice: {', '.join(repeated)}; every set needs a folder name of its own")
    return folders


def read_beir(folder: str | Path, small: bool = False, split: str = "test") -> BeirData:
    """Reads one set.

    Args:
        folder: The set's folder, see the module docstring.
        small: Keep only the queries and documents of the two lists ``queries_150.txt`` and ``docs_small.txt``.
        split: Which judgements to read: "test", "dev", ...

    Raises:
        DataError: A file is missing or unreadable, a record is broken, a judgement points nowhere, or nothing is left.
    """
    folder = Path(folder)
    if small and split != "test":
        raise DataError(f"{folder}: the small lists belong to the test split, not to {split!r}")
    corpus_file, queries_file = _require(folder, "corpus"), _require(folder, "queries")
    documents = _read_texts(corpus_file, titles=True)
    texts = _read_texts(queries_file, titles=False)
    qrels_file = _qrels_file(folder, split)
    qrels = _read_qrels(qrels_file, texts, documents)
    if small:
        documents, qrels = _keep_small(folder, documents, qrels)
    # A query without a relevant document has no defined score (trec_eval leaves it out as well).
    qrels = {query: judged for query, judged in qrels.items() if any(score > 0 for score in judged.values())}
    if not qrels:
        raise DataError(f"{qrels_file}: no query with a relevant document (score above 0)")
    return BeirData(folder.resolve().name, documents, {query: texts[query] for query in qrels}, qrels)


def read_corpus(folder: Path) -> list[str]:
    """The texts of the documents of a set that are not empty; it needs no judgements.

    Raises:
        DataError: The corpus is missing, unreadable or broken.
    """
    return [text for text in _read_texts(_require(folder, "corpus"), titles=True).values() if text.strip()]


def evaluation_queries(folder: Path) -> list[str]:
    """The texts of all queries of a set, test, dev or not judged at all, but for those that only a train split judges.

    Raises:
        DataError: A file is missing, unreadable or broken.
    """
    texts = _read_texts(_require(folder, "queries"), titles=False)
    trained, others = set(), set()
    for path in (*folder.glob("qrels/*.tsv"), *folder.glob("qrels*.tsv")):
        judged = {line.split("\t")[0] for _, line in read_lines(path)}
        if path.stem in ("train", "qrels_train"):
            trained |= judged
        else:
            others |= judged
    return [text for query, text in texts.items() if query not in trained - others]


def _find(folder: Path, stem: str) -> Path | None:
    candidates = (folder / f"{stem}.jsonl.gz", folder / f"{stem}.jsonl")
    return next((path for path in candidates if path.is_file()), None)


def _require(folder: Path, stem: str) -> Path:
    path = _find(folder, stem)
    if path is None:
        raise DataError(f"{folder}: {stem}.jsonl or {stem}.jsonl.gz is missing")
    return path


def _qrels_file(folder: Path, split: str) -> Path:
    flat = folder / ("qrels.tsv" if split == "test" else f"qrels_{split}.tsv")
    nested = folder / "qrels" / f"{split}.tsv"
    for path in (nested, flat):
        if path.is_file():
            return path
    raise DataError(f"{folder}: no judgements for split {split!r}: neither qrels/{nested.name} nor {flat.name} exists")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line) of the non-blank lines; only a line feed ends a line, as JSONL demands."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.decode("utf-8").rstrip("\r\n")
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8: {error.reason}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}:{number + 1}: cannot be read: {error}") from error


def _read_texts(path: Path, titles: bool) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        identifier, text = _parse_record(where, line, titles)
        if identifier in texts:
            raise DataError(f"{where}: id {identifier!r} appears twice")
        texts[identifier] = text
    if not texts:
        raise DataError(f"{path}: empty")
    return texts


def _parse_record(where: str, line: str, titles: bool) -> tuple[str, str]:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} (column {error.colno})") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
    for key in ("_id", "text"):
        if not isinstance(record.get(key), str):
            raise DataError(f"{where}: {key!r} must be a string, found {record.get(key)!r}")
    title = (record.get("title") or "") if titles else ""
    if not isinstance(title, str):
        raise DataError(f"{where}: 'title' must be a string, found {title!r}")
    text = f"{title} {record['text']}".strip() if titles else record["text"]
    try:
        (record["_id"] + text).encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair; no tokenizer takes it
        raise DataError(f"{where}: a lone surrogate, which is not valid Unicode text: {error.reason}") from error
    return record["_id"], text


def _read_qrels(path: Path, queries: dict[str, str], documents: dict[str, str]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        fields = line.split("\t")
        if len(fields) != 3:
            raise DataError(f"{where}: expected query-id, corpus-id and score separated by tabs, found {line!r}")
        query, document, score = fields
        try:
            relevance = int(score)
        except ValueError:
            if number == 1:  # the header
                continue
            raise DataError(f"{where}: the score must be a whole number, found {score!r}") from None
        if query not in queries:
            raise DataError(f"{where}: query {query!r} is not in the queries file")
        if document not in documents:
            raise DataError(f"{where}: document {document!r} is not in the corpus")
        qrels.setdefault(query, {})[document] = relevance
    if not qrels:
        raise DataError(f"{path}: holds no judgements")
    return qrels


def _keep_small(
    folder: Path, documents: dict[str, str], qrels: dict[str, dict[str, int]]
) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    query_ids = _read_ids(folder / SMALL_QUERIES, qrels, "has no judgement")
    kept = set(_read_ids(folder / SMALL_DOCUMENTS, documents, "is not in the corpus"))
    for query in query_ids:
        if missing := [document for document, score in qrels[query].items() if score > 0 and document not in kept]:
            raise DataError(f"{folder / SMALL_DOCUMENTS}: lacks {missing[0]!r}, which is relevant to query {query!r}")
    small_qrels = {query: {d: score for d, score in qrels[query].items() if d in kept} for query in query_ids}
    return {identifier: text for identifier, text in documents.items() if identifier in kept}, small_qrels


def _read_ids(path: Path, known: dict[str, Any], complaint: str) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: missing; the small run needs {SMALL_QUERIES} and {SMALL_DOCUMENTS}")
    identifiers = []
    for number, line in read_lines(path):
        if line not in known:
            raise DataError(f"{path}:{number}: {line!r} {complaint}")
        identifiers.append(line)
    return identifiers
