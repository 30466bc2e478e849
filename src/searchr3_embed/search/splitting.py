"""Cutting a text into pieces that are short enough to embed, each with the headings above it.

Plain functions on strings; the time grows with the length of the text, whatever it looks like. Nothing is left out but
blank lines, white space at the ends of pieces and the marks of headings.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_WORDS = 130
"""Default length limit of a piece, in words as ``word_count`` counts them."""


_EAST_ASIAN = re.compile("[\u2e80-\U0010ffff]")


def word_count(text: str) -> int:
    """Length of a text in words, also for text that does not put spaces between words.

    Six characters count as one word at least, and every character from the East Asian blocks as one: a limit in
    blank-separated words alone would let one line of Chinese, or of base64, pass as a single word.
    """
    words = max(len(text.split()), len(text) // 6)
    return words if text.isascii() else words + len(_EAST_ASIAN.findall(text))


def split_text(text: str, *, max_words: int = MAX_WORDS, definitions: bool = False) -> list[tuple[int, str, str]]:
    r"""Cut a text into passages at its headings, then at paragraphs, then (only where it must) inside a paragraph.

    Understands Markdown headings (``## Title``), underlined ones (reStructuredText, setext) and fenced code blocks. A
    heading that has nothing below it is text of the section that it stands in.

    Args:
        text: The whole text, with lines that end in ``\n``.
        max_words: Longest passage, see ``word_count``.
        definitions: Take a line like ``str.split(sep=None)`` for a heading too (Python's language topics).

    Returns:
        ``(line, heading, passage)`` triples in the order of the text: the number of the passage's first line, from 1;
        the headings above it, joined by " > ", outermost first (empty where there is none); the passage.
    """
    pieces: list[tuple[int, str, str]] = []
    for start, heading, lines in _sections(text.split("\n"), definitions):
        current: list[str] = []
        current_line, size = start, 0
        for paragraph_line, paragraph in paragraphs_of(start, lines):
            for line, part in _parts(paragraph_line, paragraph, max_words):
                words = word_count(part)
                if current and size + words > max_words:
                    pieces.append((current_line, heading, "\n\n".join(current)))
                    current, size = [], 0
                if not current:
                    current_line = line
                current.append(part)
                size += words
        if current:
            pieces.append((current_line, heading, "\n\n".join(current)))
    return pieces


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
    for _, part in _parts(1, text, max_words):
        yield part


# Longer texts have too many words for sure: so many characters are all that a cut has to look at.
_CHARACTERS_PER_WORD = 6
_SENTENCE_END = re.compile(r"[.!?;]\s|[。!?]|\n")
_BLANK = re.compile(r"\s")
_TEXT = re.compile(r"\S")


def _parts(line: int, text: str, max_words: int) -> Iterator[tuple[int, str]]:
    """The parts of a paragraph that begins on a line, each with the number of the line that it begins on."""
    window = _CHARACTERS_PER_WORD * (max_words + 1)
    position, end = 0, len(text.rstrip())
    while end - position > window or word_count(text[position:end]) > max_words:
        ahead = text[position : min(position + window, end)]
        low, high = 1, len(ahead)  # the longest prefix within the limit; word_count grows with the prefix
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if word_count(ahead[:middle]) <= max_words else (low, middle - 1)
        head = ahead[:low]
        # A cut in the first half would leave a stub: better to break a sentence than to make many tiny passages.
        ends = ([match.end() for match in pattern.finditer(head)] for pattern in (_SENTENCE_END, _BLANK))
        cut = next((places[-1] for places in ends if places and places[-1] > low // 2), low)
        if part := head[:cut].strip():
            yield line, part
        following = _TEXT.search(text, position + cut, end)
        after = following.start() if following else end
        line += text.count("\n", position, after)
        position = after
    if position < end:
        yield line, text[position:end] if position == 0 else text[position:end].strip()


# -------------------------------------------------------------------------------------------------- headings

_MARKDOWN_HEADING = re.compile(r"(#{1,6})\s+(?=\S)")
_UNDERLINE = re.compile(r"([=\-~^*+#\"'`:.])\1{2,}\s*$")
_FENCE = re.compile(r"\s*(`{3,}(?!.*`)|~{3,})")
_DEFINITION = re.compile(r"(?:class |async )?[A-Za-z_][\w.]*\(.*\)(?: -> \S+)?$")
_DEFINITION_LEVEL = 99  # below every real heading, beside the other definitions


class _Heading(NamedTuple):
    start: int  # index of its first line
    end: int  # index of the line after it
    level: int
    title: str


def _sections(lines: list[str], definitions: bool) -> Iterator[tuple[int, str, list[str]]]:
    """Yield ``(number of the first line, heading trail, lines)`` for the stretch under each heading.

    Headings without anything below them are a stretch of the section around them, neighbours together.
    """
    headings = [*_headings(lines, definitions), _Heading(len(lines), len(lines), 0, "")]
    yield 1, "", lines[: headings[0].start]
    trail: list[_Heading] = []
    bare: list[str] = []
    bare_start, bare_trail = 0, ""
    for heading, following in itertools.pairwise(headings):
        trail = [entry for entry in trail if entry.level < heading.level]
        above = " > ".join(entry.title for entry in trail)
        trail.append(heading)
        body = lines[heading.end : following.start]
        is_bare = following.level <= heading.level and not any(line.strip() for line in body)
        if bare and not (is_bare and above == bare_trail):
            yield bare_start + 1, bare_trail, bare
            bare = []
        if not is_bare:
            yield heading.end + 1, " > ".join(entry.title for entry in trail), body
            continue
        if not bare:
            bare_start, bare_trail = heading.start, above
        own = lines[heading.start : heading.end]
        bare += own if len(own) == 1 else ["" if _UNDERLINE.match(line) else line for line in own]
        bare += body
    if bare:
        yield bare_start + 1, bare_trail, bare


def _headings(lines: list[str], definitions: bool) -> Iterator[_Heading]:
    underlines: list[str] = []  # reStructuredText gives levels to underline characters by order of appearance
    index = 0
    unclosed: dict[str, int] = {}
    while index < len(lines):
        if (opened := _FENCE.match(lines[index])) and (end := _fence_end(index, opened[1], lines, unclosed)):
            index = end
        elif heading := _heading_at(index, lines, underlines, definitions):
            yield heading
            index = heading.end
        else:
            index += 1


def _fence_end(start: int, mark: str, lines: list[str], unclosed: dict[str, int]) -> int | None:
    """The index after the line that closes a fenced block; None where nothing does, and the mark is no fence.

    Args:
        start: Index of the line that opens it.
        mark: What opens it, three marks or more; as many of the same kind alone on a line close it.
        lines: All lines.
        unclosed: Kind of mark -> the shortest fence that is not closed, so that no part is searched again and again.
    """
    if len(mark) >= unclosed.get(mark[0], len(mark) + 1):
        return None
    for index in range(start + 1, len(lines)):
        line = lines[index].strip()
        if line.startswith(mark) and not line.strip(mark[0]):
            return index + 1
    unclosed[mark[0]] = len(mark)
    return None


def _heading_at(index: int, lines: list[str], underlines: list[str], definitions: bool) -> _Heading | None:
    """The heading that begins on a line, if one does."""
    line = lines[index]
    if match := _MARKDOWN_HEADING.match(line):
        title = line[match.end() :].rstrip()
        opened = title.rstrip("#")
        if not opened or opened[-1].isspace():  # "## Title ##", but not "## C#"
            title = opened.rstrip()
        return _Heading(index, index + 1, len(match[1]), title) if title else None
    if (index and lines[index - 1].strip()) or not line.strip():
        return None
    below = lines[index + 1] if index + 1 < len(lines) else ""
    if _UNDERLINE.match(line):
        overlined = index + 2 < len(lines) and lines[index + 2].rstrip() == line.rstrip()
        if overlined and below.strip():
            return _Heading(index, index + 3, _level(line, underlines), below.strip())
        return None
    if not line[0].isspace() and _UNDERLINE.match(below) and len(below.rstrip()) >= min(len(line.rstrip()), 4):
        return _Heading(index, index + 2, _level(below, underlines), line.strip())
    if definitions and _DEFINITION.match(line):
        return _Heading(index, index + 1, _DEFINITION_LEVEL, line.strip())
    return None


def _level(underline: str, seen: list[str]) -> int:
    if underline[0] not in seen:
        seen.append(underline[0])
    return seen.index(underline[0]) + 1
