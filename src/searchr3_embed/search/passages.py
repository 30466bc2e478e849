"""Reading passages from a folder of text files or from a JSONL file.

Every reader returns a list of ``Passage`` in an order that depends only on the input. The readers know nothing of
models or vectors.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = frozenset({".txt", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex"})
"""Endings of the files that ``read_folder`` reads (compared in lower case)."""

MAX_WORDS = 130
"""Default length limit of a passage, in words as ``word_count`` counts them."""


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


# ------------------------------------------------------------------------------------------------ plain text


def word_count(text: str) -> int:
    """Length of a text in words, also for text that does not put spaces between words.

    Six characters count as one word at least, and every character from the East Asian blocks as one: a limit in
    blank-separated words alone would let one line of Chinese, or of base64, pass as a single word.
    """
    return max(len(text.split()), len(text) // 6) + sum(1 for c in text if c >= "\u2e80")


def split_text(text: str, *, max_words: int = MAX_WORDS, definitions: bool = False) -> list[tuple[int, str, str]]:
    """Cut a text into passages at its headings, then at paragraphs, then (only where it must) inside a paragraph.

    Understands Markdown headings (``## Title``), underlined ones (reStructuredText, setext) and fenced code blocks.

    Args:
        text: The whole text.
        max_words: Longest passage, see ``word_count``.
        definitions: Take a line like ``str.split(sep=None)`` for a heading too (Python's language topics).

    Returns:
        ``(line, heading, passage)`` triples in the order of the text: the number of the passage's first line, from 1;
        the headings above it, joined by " > ", outermost first (empty where there is none); the passage.
    """
    pieces: list[tuple[int, str, str]] = []
    for start, heading, lines in _sections(text.splitlines(), definitions):
        current: list[str] = []
        current_line, size = start, 0
        for line_number, paragraph in paragraphs_of(start, lines):
            for part in split_paragraph(paragraph, max_words):
                words = word_count(part)
                if current and size + words > max_words:
                    pieces.append((current_line, heading, "\n\n".join(current)))
                    current, size = [], 0
                if not current:
                    current_line = line_number
                current.append(part)
                size += words
        if current:
            pieces.append((current_line, heading, "\n\n".join(current)))
    return pieces


_MARKDOWN_HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*$")
_UNDERLINE = re.compile(r"([=\-~^*+#\"'`:.])\1{2,}\s*$")
_FENCE = re.compile(r"\s*(```|~~~)")
_DEFINITION = re.compile(r"(?:class |async )?[A-Za-z_][\w.]*\(.*\)(?: -> \S+)?$")


def _sections(lines: list[str], definitions: bool) -> Iterator[tuple[int, str, list[str]]]:
    """Yield ``(number of the first line, heading trail, lines)`` for the stretch under each heading."""
    trail: list[tuple[int, str]] = []
    underlines: list[str] = []  # reStructuredText gives levels to underline characters by order of appearance
    body: list[str] = []
    start, index, fenced = 1, 0, False
    while index < len(lines):
        line = lines[index]
        heading: tuple[int, str] | None = None
        used = 1
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            blank_above = index == 0 or not lines[index - 1].strip()
            below = lines[index + 1] if index + 1 < len(lines) else ""
            ruler = _UNDERLINE.match(line) is not None
            overlined = ruler and index + 2 < len(lines) and lines[index + 2].rstrip() == line.rstrip()
            if match := _MARKDOWN_HEADING.match(line):
                heading = (len(match[1]), match[2])
            elif blank_above and overlined and below.strip():
                heading, used = (_level(line, underlines), below.strip()), 3
            elif (
                blank_above
                and line.strip()
                and not line[0].isspace()
                and not ruler
                and _UNDERLINE.match(below)
                and len(below.rstrip()) >= min(len(line.rstrip()), 4)
            ):
                heading, used = (_level(below, underlines), line.strip()), 2
            elif definitions and blank_above and _DEFINITION.match(line):
                heading = (99, line.strip())  # below every real heading, beside the other definitions
        if heading is None:
            body.append(line)
        else:
            yield start, " > ".join(title for _, title in trail), body
            trail = [*(entry for entry in trail if entry[0] < heading[0]), heading]
            start, body = index + used + 1, []
        index += used
    yield start, " > ".join(title for _, title in trail), body


def _level(underline: str, seen: list[str]) -> int:
    if underline[0] not in seen:
        seen.append(underline[0])
    return seen.index(underline[0]) + 1


def paragraphs_of(start: int, lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield ``(number of the first line, text)`` for every run of lines between blank ones."""
    run: list[str] = []
    for number, line in enumerate([*lines, ""], start):
        if line.strip():
            run.append(line.rstrip())
        elif run:
            yield number - len(run), "\n".join(run)
            run = []


def split_paragraph(text: str, max_words: int) -> Iterator[str]:
    """Cut one paragraph where it is longer than allowed: after a sentence, else at a blank, else anywhere."""
    while word_count(text) > max_words:
        low, high = 1, len(text)  # the longest prefix within the limit; word_count grows with the prefix
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if word_count(text[:middle]) <= max_words else (low, middle - 1)
        head = text[:low]
        ends = [match.end() for match in re.finditer(r"[.!?;]\s|[。!?]|\n", head)]
        blanks = [match.end() for match in re.finditer(r"\s", head)]
        # A cut in the first half would leave a stub: better to break a sentence than to make many tiny passages.
        cut = next((places[-1] for places in (ends, blanks) if places and places[-1] > low // 2), low)
        yield text[:cut].strip()
        text = text[cut:].strip()
    if text:
        yield text


# ---------------------------------------------------------------------------------------------------- folder


def read_folder(
    folder: str | os.PathLike[str], *, suffixes: Iterable[str] = TEXT_SUFFIXES, max_words: int = MAX_WORDS
) -> list[Passage]:
    """Read all text files below a folder, cut into passages.

    Hidden files and folders, links to folders and files that look binary are left out (the latter with a warning in
    the log). Text that is not UTF-8 is read with replacement characters.

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
    for path in files_below(root):
        if path.suffix.lower() not in wanted:
            continue
        passages += _file_passages(path, path.relative_to(root).as_posix(), max_words)
    if not passages:
        raise CorpusError(f"{root}: no text in this folder (files ending in {', '.join(sorted(wanted))} are read)")
    return passages


def read_file(path: str | os.PathLike[str], *, max_words: int = MAX_WORDS) -> list[Passage]:
    """Read one text file as ``read_folder`` reads the files of a folder; ids are ``file.md:LINE``.

    Raises:
        CorpusError: No such file, or no text in it.
    """
    passages = _file_passages(Path(path), Path(path).name, max_words)
    if not passages:
        raise CorpusError(f"{path}: no text in this file")
    return passages


def _file_passages(path: Path, name: str, max_words: int) -> list[Passage]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror or error}") from error
    if b"\0" in data[:8192]:
        logger.warning("%s looks like a binary file and is left out.", path)
        return []
    pieces = split_text(data.decode("utf-8-sig", errors="replace"), max_words=max_words)
    return [Passage(f"{name}:{line}", heading or path.name, text) for line, heading, text in pieces]


def files_below(root: Path, skipped: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The files below a folder in the order of their names, without hidden ones and without the named folders."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skipped)
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(folder, name)


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
        identifier = record.get("id", record.get("_id", number))
        passages.append(Passage(str(identifier), title if isinstance(title, str) else "", text))
    if not passages:
        raise CorpusError(f"{name}: no records")
    return passages
