"""Reading passages from a folder of text files or from a JSONL file.

Every reader returns a list of ``Passage`` in an order that depends only on the input. The readers know nothing of
models or vectors.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from searchr3_embed.files import NotTextError, describe_surrogate, printable, read_text, shorten
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
    """

    id: str
    title: str
    text: str

    @property
    def content(self) -> str:
        """What is embedded: the title and the text, or the text alone where its first line has the title already."""
        if self.title in self.text.partition("\n")[0]:
            return self.text
        return f"{self.title}\n{self.text}"


# ---------------------------------------------------------------------------------------------------- folder


def read_folder(
    folder: str | os.PathLike[str], *, suffixes: Iterable[str] = TEXT_SUFFIXES, max_words: int = MAX_WORDS
) -> list[Passage]:
    """Read all text files below a folder, cut into passages.

    Hidden files and folders and links to folders are left out. A file that can't be read as text, and a folder that
    can't be opened, is left out too and stops nothing: how many there are, and the first names, are one warning in the
    log. So are files whose encoding had to be guessed.

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
    """The files below a folder in the order of their names, without hidden ones.

    Args:
        root: Where to start.
        skipped: Names of folders that are left out.
        unreadable: Called with the error, which names it, for a folder that can't be opened.
    """
    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skipped)
        for name in sorted(files):
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
    path: str | os.PathLike[str] | io.TextIOBase, *, field: str = "text", name: str | None = None
) -> list[Passage]:
    """Read a JSONL file: one JSON object a line with the text, and optionally an id and a title.

    Args:
        path: The file, or a text stream that is open already.
        field: The field that holds the text.
        name: What error messages call the input; by default the path.

    Returns:
        One passage a record, in order. The id is the record's ``id`` or ``_id``, else its line number; blank lines are
        skipped.

    Raises:
        CorpusError: No such file, no records, not JSON, not an object, no such field, or a field that is not a
            string. The message starts with ``file:line``.
    """
    name = name or ("standard input" if isinstance(path, io.TextIOBase) else os.fspath(path))
    try:
        if isinstance(path, io.TextIOBase):
            return _parse_jsonl(path, field, name)
        with open(path, encoding="utf-8-sig") as lines:
            return _parse_jsonl(lines, field, name)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise CorpusError(f"{name}: {error.strerror or error}") from error


def _parse_jsonl(lines: Iterable[str], field: str, name: str) -> list[Passage]:
    passages = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # JSONDecodeError, or an integer with too many digits
            raise CorpusError(f"{name}:{number}: not JSON: {error}") from error
        except RecursionError as error:
            raise CorpusError(f"{name}:{number}: not usable: nested too deeply") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{name}:{number}: expected a JSON object, got {type(record).__name__}")
        if field not in record:
            fields = ", ".join(map(repr, record)) or "no fields"
            raise CorpusError(f"{name}:{number}: no field {field!r} (the record has {fields}; choose with --field)")
        text = record[field]
        if not isinstance(text, str):
            raise CorpusError(f"{name}:{number}: field {field!r} must be a string, got {type(text).__name__}")
        title = record.get("title")
        title = title if isinstance(title, str) else ""
        identifier = str(record.get("id", record.get("_id", number)))
        for key, value in (("id", identifier), ("title", title), (field, text)):
            if found := describe_surrogate(value):
                raise CorpusError(f"{name}:{number}: field {key!r} holds {found}")
        passages.append(Passage(identifier, title, text))
    if not passages:
        raise CorpusError(f"{name}: no records")
    return passages
