"""Reading passages from a folder of text files or from a JSONL file.

Every reader returns a list of ``Passage`` in an order that depends only on the input. The readers know nothing of
models or vectors.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from searchr3_embed.files import (
    NotTextError,
    decode_line,
    describe_surrogate,
    printable,
    raw_lines,
    read_text,
    shorten,
)
from searchr3_embed.search.splitting import MAX_WORDS, split_text

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = frozenset({".txt", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex"})
"""Endings of the files that ``read_folder`` reads (compared in lower case)."""


class CorpusError(ValueError):
    """The input cannot be read as passages. The message is one sentence and names the file (and the line)."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One searchable text.

    Attributes:
        id: Identifies the passage inside its source: ``guide.md:12``, a JSONL record's own id, ``json.loads``.
        title: What a list of hits shows; may be empty.
        text: The passage itself, without the title.
        names_itself: The text begins with the title by itself, as the signature of a function does.
    """

    id: str
    title: str
    text: str
    names_itself: bool = False

    @property
    def content(self) -> str:
        """What is embedded: the title and the text, or the text alone where it names itself."""
        return self.text if self.names_itself else with_title(self.title, self.text)


def with_title(title: str, text: str) -> str:
    """What is embedded of a document with a title: the title, a blank, the text. Every part of the project asks here.

    It is the join of BEIR and MTEB, and does not depend on whether one of the two contains the other.
    """
    if not title.strip():
        return text
    return f"{title} {text}" if text.strip() else title


# ---------------------------------------------------------------------------------------------------- folder


def read_folder(
    folder: str | os.PathLike[str], *, suffixes: Iterable[str] = TEXT_SUFFIXES, max_words: int = MAX_WORDS
) -> list[Passage]:
    """Read all text files below a folder, cut into passages.

    Hidden files and folders are left out. A file that can't be read as text, a folder that can't be opened and a link
    to a folder, which may lead round in a circle, are left out too and stop nothing: how many there are, and the first
    names, are one warning in the log. So are files whose encoding had to be guessed.

    Args:
        folder: Where to start.
        suffixes: Endings of the files to read, with their dot.
        max_words: Longest passage, see ``word_count``.

    Returns:
        Passages with ids ``path/in/folder.md:LINE`` and the headings above (else the file name) as titles, files in
        the order of their names.

    Raises:
        CorpusError: No such folder, or nothing in it to read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder")
    wanted = {suffix.lower() for suffix in suffixes}
    passages: list[Passage] = []
    left_out: list[str] = []
    guessed: list[str] = []

    def leave_out(error: OSError) -> None:
        left_out.append(f"{_relative(Path(error.filename), root)} ({error.strerror or error})")

    for path in files_below(root, unreadable=leave_out):
        if path.is_symlink() and path.is_dir():
            left_out.append(f"{_relative(path, root)} (a link to a folder)")
            continue
        if path.suffix.lower() not in wanted:
            continue
        name = _relative(path, root)
        try:
            file = read_text(path)
        except OSError as error:
            left_out.append(f"{name} ({error.strerror or error})")
        except NotTextError as error:
            left_out.append(f"{name} ({error})")
        else:
            if file.guessed:
                guessed.append(name)
            passages += _file_passages(file.text, name, max_words)
    report = _report(left_out, guessed)
    if not passages:
        raise CorpusError(
            f"{root}: no text in this folder (files ending in {', '.join(sorted(wanted))} are read)"
            + (f"; {report}" if report else "")
        )
    if report:
        logger.warning("%s: %s", root, report)
    return passages


def read_file(path: str | os.PathLike[str], *, max_words: int = MAX_WORDS) -> list[Passage]:
    """Read one text file as ``read_folder`` reads the files of a folder; ids are ``file.md:LINE``.

    Raises:
        CorpusError: No such file, or no text in it.
    """
    path = Path(path)
    try:
        file = read_text(path)
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror or error}") from error
    except NotTextError as error:
        raise CorpusError(f"{path}: no text in this file ({error})") from error
    passages = _file_passages(file.text, printable(path.name), max_words)
    if not passages:
        raise CorpusError(f"{path}: no text in this file")
    if file.guessed:
        logger.warning("%s", _report([], [str(path)]))
    return passages


def files_below(
    root: Path, skipped: frozenset[str] = frozenset(), unreadable: Callable[[OSError], object] | None = None
) -> Iterator[Path]:
    """The files below a folder, and the links to folders, in the order of their names, without hidden ones.

    Args:
        root: Where to start.
        skipped: Names of folders that are left out.
        unreadable: Called with the error, which names it, for a folder that can't be opened.
    """
    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skipped)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]  # they are not walked into
        for name in sorted([*files, *links]):
            if not name.startswith("."):
                yield Path(folder, name)


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def _file_passages(text: str, name: str, max_words: int) -> list[Passage]:
    pieces = split_text(text, max_words=max_words)
    title = name.rpartition("/")[2]
    return [Passage(f"{name}:{line}", heading or title, piece) for line, heading, piece in pieces]


def _report(left_out: list[str], guessed: list[str]) -> str:
    """One sentence on what was not read as it should be; empty if there is nothing to say."""
    parts = []
    if left_out:
        parts.append(f"{_files(left_out)} left out: {_first_names(left_out)}")
    if guessed:
        parts.append(f"{_files(guessed)} not in UTF-8, some letters may be wrong: {_first_names(guessed)}")
    return "; ".join(parts)


def _files(names: list[str]) -> str:
    return f"{len(names)} file{'s' if len(names) > 1 else ''}"


def _first_names(names: list[str]) -> str:
    shown = ", ".join(shorten(name, 100) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} ..."


# ----------------------------------------------------------------------------------------------------- JSONL


def read_jsonl(
    source: str | os.PathLike[str] | IO[bytes],
    *,
    field: str = "text",
    name: str | None = None,
    skip_bad: bool = False,
) -> list[Passage]:
    """Read a JSONL file: one JSON object a line with the text, and optionally an id and a title.

    Ids that several records have are no error, for nothing is looked up by them; a warning in the log counts them.

    Args:
        source: The file, or one that is open for reading bytes.
        field: The field that holds the text.
        name: What error messages call the input; by default the path.
        skip_bad: Leave out lines that are no such record, and count them in one warning in the log, instead of raising
            for the first.

    Returns:
        One passage a record, in order. The id is the record's ``id``, else its ``_id``, else (both are missing, null
        or empty) its line number; blank lines are skipped.

    Raises:
        CorpusError: No such file, no records, not JSON, not an object, no such field, or a field of a wrong type. The
            message starts with ``file:line``.
    """
    if not isinstance(source, str | os.PathLike):
        return _parse_jsonl(source, field, name or "standard input", skip_bad)
    name = name or os.fspath(source)
    try:
        with open(source, "rb") as file:
            return _parse_jsonl(file, field, name, skip_bad)
    except OSError as error:
        raise CorpusError(f"{name}: {error.strerror or error}") from error


def _parse_jsonl(file: IO[bytes], field: str, name: str, skip_bad: bool) -> list[Passage]:
    passages = []
    left_out = LeftOut(name, skip_bad)
    lines_of: dict[str, int] = {}
    repeated: list[str] = []
    for number, line in enumerate(_raw_lines(file, name), 1):
        if not line.strip():
            continue
        try:
            passage = _record_passage(decode_line(line), number, field)
        except ValueError as error:
            left_out.add(number, error)
            continue
        if (first := lines_of.setdefault(passage.id, number)) != number:
            repeated.append(f"{shorten(passage.id, 60)!r} in lines {first} and {number}")
        passages.append(passage)
    left_out.tell()
    if not passages:
        raise CorpusError(f"{name}: no records")
    if repeated:
        logger.warning("%s: %d records have the id of an earlier one: %s", name, len(repeated), _first_names(repeated))
    return passages


def read_lines(file: IO[bytes], *, name: str, skip_bad: bool = False) -> list[Passage]:
    r"""Read one text a line, blank lines included.

    Args:
        file: Open for reading bytes.
        name: What messages call it.
        skip_bad: Leave out lines that are no text, and count them in one warning in the log, instead of raising.

    Returns:
        One passage a line, without an id and a title.

    Raises:
        CorpusError: There are no lines, or one is no text. The message starts with ``name:line``.
    """
    passages = []
    left_out = LeftOut(name, skip_bad)
    for number, line in enumerate(_raw_lines(file, name), 1):
        try:
            text = decode_line(line)
            if "\0" in text:
                raise NotTextError("binary: the line holds NUL characters")
        except NotTextError as error:
            left_out.add(number, error)
        else:
            passages.append(Passage("", "", text))
    left_out.tell()
    if not passages:
        raise CorpusError(f"{name}: no text")
    return passages


class LeftOut:
    """Lines that cannot be used: the first is an error, or all are counted and told at the end."""

    def __init__(self, name: str, skip_bad: bool) -> None:
        self._name, self._skip_bad = name, skip_bad
        self._count, self._first = 0, ""

    def add(self, number: int, error: ValueError) -> None:
        """Takes note of a line.

        Raises:
            CorpusError: Bad lines are not to be skipped.
        """
        told = f"{self._name}:{number}: {error}"
        if not self._skip_bad:
            raise CorpusError(told) from error
        self._count += 1
        self._first = self._first or told

    def tell(self) -> None:
        """Writes one warning to the log, if there is something to tell."""
        if self._count:
            lines = "bad line" if self._count == 1 else "bad lines"
            logger.warning("%s: %d %s left out, the first: %s", self._name, self._count, lines, self._first)


def _raw_lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    try:
        yield from raw_lines(file)
    except NotTextError as error:
        raise CorpusError(f"{name}: {error}") from error


def _record_passage(line: str, number: int, field: str) -> Passage:
    try:
        record = json.loads(line)
    except RecursionError as error:
        raise ValueError("not usable: nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, or an integer with too many digits
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    if field not in record:
        fields = shorten(", ".join(map(repr, record)), 200) or "no fields"
        raise ValueError(f"no field {field!r} (the record has {fields}; choose with --field)")
    text = record[field]
    if not isinstance(text, str):
        raise ValueError(f"field {field!r} must be a string, got {type(text).__name__}")
    title = "" if field == "title" else _as_text("title", record.get("title"))
    identifier = _as_text("id", record.get("id")) or _as_text("_id", record.get("_id")) or str(number)
    for key, value in (("id", identifier), ("title", title), (field, text)):
        if found := describe_surrogate(value):
            raise ValueError(f"field {key!r} holds {found}")
    return Passage(identifier, title, text)


def _as_text(key: str, value: Any) -> str:
    """A string or a number as text; null, which exports write for "none", as the empty text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"field {key!r} must be a string or a number, got {shorten(json.dumps(value), 60)}")
    return str(value)
