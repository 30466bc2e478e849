"""Retrieval sets in the BEIR layout, read with errors that name the file and the line, and written.

A set is a folder::

    corpus.jsonl[.gz]     {"_id", "title", "text"}     title may be missing or ""
    queries.jsonl[.gz]    {"_id", "text"}
    qrels/<split>.tsv     query-id <tab> corpus-id <tab> score, with or without a header
    qrels.tsv             the same for the test split; qrels_<split>.tsv for any other
    queries_150.txt       optional: the query ids of the small run, one a line (test split only)
    docs_small.txt        optional: the document ids of the small run, one a line
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from searchr3_embed.files import replacing
from searchr3_embed.search.passages import with_title
from training.data.lines import DataError, check_text, parse_json, parse_lines, read_lines, shown

logger = logging.getLogger(__name__)

SMALL_QUERIES = "queries_150.txt"
SMALL_DOCUMENTS = "docs_small.txt"
LOST_DOCUMENT = "judged document that the corpus lacks"
LOST_QUERY = "judged query that the queries lack"

Qrels = dict[str, dict[str, int]]


@dataclass(frozen=True)
class BeirData:
    """One retrieval set.

    Attributes:
        name: The folder's name.
        documents: Document id -> "title text" (see ``document_text``), in the order of the corpus.
        queries: Query id -> text: exactly the queries that have a relevant document.
        qrels: Query id -> document id -> judged relevance (0 or less: judged, not relevant).
        dangling: Judgements of documents or queries that the set lacks: reason -> number of them.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    qrels: Qrels
    dangling: Counter[str] = field(default_factory=Counter)


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


def read_beir(
    folder: str | Path,
    small: bool = False,
    split: str = "test",
    *,
    keep_lost: bool = False,
    skip_bad: Counter[str] | None = None,
) -> BeirData:
    """Reads one set.

    Published sets judge documents that their corpus lacks (ArguAna) and queries that their queries lack (NFCorpus).
    That is no error: such judgements are counted, and a warning names the first.

    Args:
        folder: The set's folder, see the module docstring.
        small: Keep only the queries and documents of the two lists ``queries_150.txt`` and ``docs_small.txt``.
        split: Which judgements to read: "test", "dev", ...
        keep_lost: Keep judgements of documents that the corpus lacks, and the queries that have no others. They are
            never found and so lower the scores, as they do in BEIR and MTEB. Without it they are left out.
        skip_bad: Counts broken lines and leaves them out; None raises the first error.

    Raises:
        DataError: A file is missing or unreadable, a line is broken, or nothing is left.
    """
    folder = Path(folder)
    if small and split != "test":
        raise DataError(f"{folder}: the small lists belong to the test split, not to {split!r}")
    documents = _read_texts(_require(folder, "corpus"), document_text, skip_bad)
    texts = _read_texts(_require(folder, "queries"), _query_text, skip_bad)
    qrels_file = _qrels_file(folder, split)
    qrels, dangling = _read_qrels(qrels_file, texts, documents, keep_lost, skip_bad)
    if small:
        documents, qrels = _keep_small(folder, documents, qrels)
    # A query without a relevant document has no defined score (trec_eval leaves it out as well).
    qrels = {query: judged for query, judged in qrels.items() if any(score > 0 for score in judged.values())}
    if not any(document in documents for judged in qrels.values() for document in judged):
        raise DataError(f"{qrels_file}: no query with a relevant document (score above 0)")
    return BeirData(folder.resolve().name, documents, {query: texts[query] for query in qrels}, qrels, dangling)


def read_corpus(folder: Path) -> list[str]:
    """The texts of the documents of a set that are not empty; it needs no judgements.

    Raises:
        DataError: The corpus is missing, unreadable or broken.
    """
    return [text for text in _read_texts(_require(folder, "corpus"), document_text).values() if text.strip()]


def evaluation_queries(folder: Path) -> list[str]:
    """The texts of all queries of a set, test, dev or not judged at all, but for those that only a train split judges.

    Raises:
        DataError: A file is missing, unreadable or broken.
    """
    texts = _read_texts(_require(folder, "queries"), _query_text)
    trained, others = set(), set()
    for path in (*folder.glob("qrels/*.tsv"), *folder.glob("qrels*.tsv")):
        judged = {line.split("\t")[0] for line in read_lines(path)}
        if path.stem in ("train", "qrels_train"):
            trained |= judged
        else:
            others |= judged
    return [text for query, text in texts.items() if query not in trained - others]


def write_beir(data: BeirData, folder: Path) -> None:
    """Writes a set in the layout that ``read_beir`` reads; each file appears whole or not at all."""
    for name, texts in (("corpus.jsonl", data.documents), ("queries.jsonl", data.queries)):
        with replacing(folder / name, "w") as file:
            for identifier, text in texts.items():
                file.write(json.dumps({"_id": identifier, "text": text}, ensure_ascii=False) + "\n")
    with replacing(folder / "qrels.tsv", "w") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for query, judged in data.qrels.items():
            file.writelines(f"{query}\t{document}\t{score}\n" for document, score in judged.items())


def document_text(where: str, record: Mapping[str, Any]) -> str:
    """The text of a document, its title in front where it has one. All texts of documents are made here.

    Args:
        where: Its place, for the message.
        record: With ``text`` and perhaps ``title``.

    Raises:
        DataError: One of them is no text.
    """
    title = _number_as_text(record.get("title"))
    title = "" if title is None else check_text(where, "title", title, may_be_empty=True)
    return with_title(title, _query_text(where, record))


def _query_text(where: str, record: Mapping[str, Any]) -> str:
    return check_text(where, "text", record.get("text"), may_be_empty=True)


def _number_as_text(value: Any) -> Any:
    """A whole number as text, as judgements write it; every other value as it is."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


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


def _read_texts(
    path: Path, text_of: Callable[[str, Mapping[str, Any]], str], skip_bad: Counter[str] | None = None
) -> dict[str, str]:
    texts: dict[str, str] = {}

    def parse(where: str, line: str) -> tuple[str, str]:
        record = parse_json(where, line)
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
        identifier = check_text(where, "_id", _number_as_text(record.get("_id")))
        if identifier in texts:
            raise DataError(f"{where}: id {identifier!r} appears twice")
        return identifier, text_of(where, record)

    # One by one, for each id is compared with those before it.
    for identifier, text in parse_lines(path, parse, skip_bad):
        texts[identifier] = text
    if not texts:
        raise DataError(f"{path}: empty")
    return texts


def _read_qrels(
    path: Path,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    keep_lost: bool,
    skip_bad: Counter[str] | None,
) -> tuple[Qrels, Counter[str]]:
    """The judgements, and how many of them name a document or a query that is not there."""
    qrels: Qrels = {}
    dangling: Counter[str] = Counter()
    examples: list[str] = []

    def parse(where: str, line: str) -> None:
        fields = line.split("\t")
        if len(fields) != 3:
            raise DataError(f"{where}: expected query-id, corpus-id and score separated by tabs, found {shown(line)}")
        query, document, score = fields
        relevance = _relevance(where, score)
        if relevance is None:
            return
        lost = LOST_QUERY if query not in queries else LOST_DOCUMENT if document not in documents else None
        if lost:
            if not dangling:
                examples.append(f"{where}: query {shown(query)}, document {shown(document)}")
            dangling[lost] += 1
        if lost is None or (lost == LOST_DOCUMENT and keep_lost):
            if qrels.setdefault(query, {}).setdefault(document, relevance) != relevance:
                raise DataError(f"{where}: query {query!r} and document {document!r} are judged twice, differently")

    for _ in parse_lines(path, parse, skip_bad):
        pass
    if dangling:
        told = ", ".join(f"{count} {reason}" for reason, count in dangling.items())
        fate = "never found, as in BEIR and MTEB" if keep_lost and dangling[LOST_DOCUMENT] else "left out"
        logger.warning("%s: %s (%s); the first is %s", path, told, fate, examples[0])
    elif not qrels:
        raise DataError(f"{path}: holds no judgements")
    return qrels, dangling


def _relevance(where: str, score: str) -> int | None:
    """A judgement, None for the header; some sets write 1 as 1.0."""
    try:
        value = float(score)
    except ValueError:
        if where.endswith(":1"):
            return None
        value = math.nan
    if not value.is_integer():
        raise DataError(f"{where}: the score must be a whole number, found {shown(score)}")
    return int(value)


def _keep_small(folder: Path, documents: dict[str, str], qrels: Qrels) -> tuple[dict[str, str], Qrels]:
    query_ids = _read_ids(folder / SMALL_QUERIES, qrels, "has no judgement")
    kept = set(_read_ids(folder / SMALL_DOCUMENTS, documents, "is not in the corpus"))
    left_out = documents.keys() - kept
    for query in query_ids:
        if missing := [document for document, score in qrels[query].items() if score > 0 and document in left_out]:
            raise DataError(f"{folder / SMALL_DOCUMENTS}: lacks {missing[0]!r}, which is relevant to query {query!r}")
    small_qrels = {query: {d: score for d, score in qrels[query].items() if d not in left_out} for query in query_ids}
    return {identifier: text for identifier, text in documents.items() if identifier in kept}, small_qrels


def _read_ids(path: Path, known: Mapping[str, Any], complaint: str) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: missing; the small run needs {SMALL_QUERIES} and {SMALL_DOCUMENTS}")

    def parse(where: str, line: str) -> str:
        if line not in known:
            raise DataError(f"{where}: {line!r} {complaint}")
        return line

    return list(parse_lines(path, parse))
