"""The lines of text files, plain or gzipped, with errors that name the file and the line.

A file that ends in the middle is an error. A line that cannot be used is an error too, unless the caller hands over a
counter: then such lines are left out, counted, and told in one warning per file.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from searchr3_embed.files import NotTextError, decode_line, describe_surrogate, raw_lines, shorten

logger = logging.getLogger(__name__)

BAD_LINE = "bad line"
SKIP_BAD_HELP = "leave out lines that cannot be used and count them; without it the first one is an error"

T = TypeVar("T")


class DataError(ValueError):
    """A file or a record that cannot be used; the message names the file and, where there is one, the line."""


def parse_lines(path: Path, parse: Callable[[str, str], T], skip_bad: Counter[str] | None = None) -> Iterator[T]:
    """Yields what ``parse`` makes of each line that is not blank.

    Only a line feed ends a line, as JSONL demands. A byte order mark at the beginning of the file is passed over, and
    a file with the mark of UTF-16 or UTF-32 is read as such.

    Args:
        path: Gzipped when its name ends in .gz.
        parse: Takes the line's place, ``file:number`` counted from 1, and its text; raises DataError for a bad line.
        skip_bad: None raises the first error. A counter leaves bad lines out and counts them as ``BAD_LINE``.

    Raises:
        DataError: The file cannot be read to its end, or a line is bad and ``skip_bad`` is None.
    """
    left_out, first = 0, None
    for number, raw in _raw_lines(path):
        where = f"{path}:{number}"
        try:
            line = _decode(where, raw)
            if not line.strip():
                continue
            value = parse(where, line)
        except DataError as error:
            if skip_bad is None:
                raise
            first = first or error
            left_out += 1
            continue
        yield value
    if skip_bad is not None and left_out:
        skip_bad[BAD_LINE] += left_out
        logger.warning("%s: %d bad lines left out, the first: %s", path, left_out, first)


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines that are not blank.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    return parse_lines(path, lambda where, line: line)


def parse_json(where: str, line: str) -> Any:
    """The JSON value of a line.

    Raises:
        DataError: It holds none.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        raise DataError(f"{where}: not JSON: {error}") from None


def check_text(where: str, name: str, value: Any, may_be_empty: bool = False) -> str:
    """A value that must be text.

    Args:
        where: Its place, for the message.
        name: What it is called there.
        value: Anything.
        may_be_empty: Take text of white space alone too.

    Raises:
        DataError: It is none, or holds half of a surrogate pair, which JSON can escape and no tokenizer takes.
    """
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        wanted = "be a string" if may_be_empty else "hold non-empty text"
        raise DataError(f"{where}: {name!r} must {wanted}, found {shown(value)}")
    if found := describe_surrogate(value):
        raise DataError(f"{where}: {name!r} holds {found}")
    return value


def shown(value: Any) -> str:
    """A value in a message: short, whatever it is."""
    return shorten(repr(value), 80)


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(raw_lines(cast(IO[bytes], file)), start=1):
                yield number, raw
    except (OSError, EOFError, zlib.error, NotTextError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise DataError(f"{path}:{number + 1}: cannot be read: {reason}") from error


def _decode(where: str, raw: bytes) -> str:
    try:
        return decode_line(raw)
    except NotTextError as error:
        raise DataError(f"{where}: {error}") from None
