"""Questions with the documents that answer them: read, matched with the corpus, and counted."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from searchr3_embed.adapt.corpus import Documents
from searchr3_embed.adapt.same_text import query_key
from searchr3_embed.files import describe_surrogate, shorten

QUESTION_FIELDS = ("query", "question")
ID_FIELDS = ("ids", "id", "chosen", "chosen_id", "document_id", "doc_id")
TEXT_FIELDS = ("positives", "positive", "document", "passage")
# Names of what is left out that a report shows; the rest is counted.
NAMES_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Questions, different from one another, and the rows of the documents that answer each.

    Attributes:
        questions: The texts.
        answers: For each, at least one row of the corpus, in ascending order.
        given: How many pairs of a question and a document were given.
        dropped: What was left out, by the reason, with a name of each.
    """

    questions: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...]
    given: int
    dropped: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def kept(self) -> int:
        """How many pairs of a question and a document are left."""
        return sum(map(len, self.answers))

    def part(self, rows: Sequence[int]) -> Pairs:
        """Some of the questions."""
        return dataclasses.replace(
            self, questions=tuple(self.questions[i] for i in rows), answers=tuple(self.answers[i] for i in rows)
        )


@dataclasses.dataclass(frozen=True)
class _Given:
    """One question as it was given: a name for messages, ids of documents, and texts (or ids) of documents."""

    where: str
    question: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]


def pairs_of(given: Any, documents: Documents) -> Pairs:
    """Pairs from what a caller has, matched with a corpus.

    Args:
        given: A path of a JSONL file, or a sequence of mappings as its lines are, or of tuples (question, id or text
            of a document, or a list of them).
        documents: The corpus.

    Returns:
        The pairs whose documents are in the corpus, equal questions as one; what is left out is named in ``dropped``.

    Raises:
        ValueError: An item is no pair, or nothing is left.
        OSError: The file can't be read.
    """
    if isinstance(given, Pairs):
        return given
    if isinstance(given, str | os.PathLike):
        items = list(_read(Path(given)))
    else:
        items = [_parse(f"Pair {number}", item) for number, item in enumerate(given)]
    if not items:
        raise ValueError("There are no pairs of a question and a document.")
    return _matched(items, documents)


def _read(path: Path) -> Iterable[_Given]:
    import gzip

    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}:{number}: not JSON: {error}") from None
                yield _parse(f"{path}:{number}", row)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None


def _parse(where: str, item: Any) -> _Given:
    if isinstance(item, tuple) and len(item) == 2:
        item = {"query": item[0], "positives": item[1] if isinstance(item[1], list | tuple) else [item[1]]}
    if not isinstance(item, Mapping):
        raise ValueError(f"{where}: expected a question with its documents, found {shorten(repr(item), 80)}")
    question = next((item[name] for name in QUESTION_FIELDS if name in item), None)
    if not isinstance(question, str):
        raise ValueError(
            f"{where}: no question: expected a text in {' or '.join(map(repr, QUESTION_FIELDS))}, found "
            f"{shorten(repr(question), 80)} (the fields are {', '.join(map(repr, item)) or 'none'})"
        )
    ids, texts = _values(where, item, ID_FIELDS, (str, int)), _values(where, item, TEXT_FIELDS, (str,))
    if not any(name in item for name in (*ID_FIELDS, *TEXT_FIELDS)):
        raise ValueError(
            f"{where}: no document: expected an id in one of {', '.join(map(repr, ID_FIELDS))}, or a text in one of "
            f"{', '.join(map(repr, TEXT_FIELDS))}"
        )
    for text in (question, *ids, *texts):
        if found := describe_surrogate(text):
            raise ValueError(f"{where}: a text holds {found}")
    return _Given(where, question.strip(), ids, texts)


def _values(where: str, item: Mapping[str, Any], names: Sequence[str], kinds: tuple[type, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        value = item.get(name)
        for one in value if isinstance(value, list | tuple) else [] if value is None else [value]:
            if not isinstance(one, kinds) or isinstance(one, bool):
                raise ValueError(
                    f"{where}: {name!r} must be a text or a list of texts, found {shorten(repr(one), 80)}"
                )
            found.append(str(one))
    return tuple(found)


def _matched(items: Iterable[_Given], documents: Documents) -> Pairs:
    dropped: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    answers: dict[str, set[int]] = {}
    given = 0

    def drop(reason: str, item: _Given, what: str = "") -> None:
        dropped.setdefault(reason, []).append(f"{item.where}: {shorten(what or item.question or '(empty)', 60)}")

    for item in items:
        named = [(name, documents.by_id.get(name)) for name in item.ids]
        for text in item.texts:
            if not text.strip():
                drop("empty document", item)
                given += 1
                continue
            row = documents.row_of_text(text)
            named.append((text, documents.by_id.get(text) if row is None else row))
        given += len(named)
        if not item.question:
            drop("empty question", item)
            continue
        if not named:
            given += not item.texts
            drop("question without a document", item)
            continue
        key = query_key(item.question)
        for name, row in named:
            if row is None:
                drop("document not in the corpus", item, name)
            elif query_key(documents.texts[row]) == key:
                drop("document that only repeats the question", item)
            elif row in answers.get(key, ()):
                drop("duplicate", item)
            else:
                texts.setdefault(key, item.question)
                answers.setdefault(key, set()).add(row)
    if not texts:
        told = "; ".join(f"{len(names)} {reason}, the first {names[0]}" for reason, names in dropped.items())
        raise ValueError(f"No pair is left: {told}.")
    return Pairs(
        tuple(texts.values()),
        tuple(tuple(sorted(answers[key])) for key in texts),
        given,
        {reason: tuple(names) for reason, names in dropped.items()},
    )
