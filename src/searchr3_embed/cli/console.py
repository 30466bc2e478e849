"""Standard input, output and error of the commands, and how errors and warnings read."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from searchr3_embed.cli.arguments import STDIN, CommandError
from searchr3_embed.files import NotTextError, decode_line, raw_lines

if TYPE_CHECKING:
    from searchr3_embed.reasoning_trace import Reasoning


def note(text: str) -> None:
    """Print what is not a result: to standard error."""
    print(text, file=sys.stderr, flush=True)


def as_json(record: dict[str, Any]) -> str:
    """One line of JSON that the standard output can show."""
    return json.dumps(record, ensure_ascii=not writes_utf8(sys.stdout))


def writes_utf8(stream: Any) -> bool:
    """Whether every text can be written to a stream."""
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "") == "utf8"


@contextlib.contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """The bytes of a file or, for ``-``, of the standard input.

    Raises:
        CommandError: The standard input is closed.
        OSError: The file can't be opened.
    """
    if name != STDIN:
        with open(name, "rb") as file:
            yield file
        return
    if sys.stdin is None or sys.stdin.closed:
        raise CommandError("standard input is closed")
    buffer = getattr(sys.stdin, "buffer", None)  # there is none where it is replaced, as tests and notebooks do
    yield io.BytesIO(sys.stdin.read().encode("utf-8", "surrogatepass")) if buffer is None else buffer


def questions(words: Sequence[str]) -> Iterator[str]:
    """The arguments, with every ``-`` replaced by the lines of the standard input, as they come.

    Raises:
        CommandError: The standard input is closed, holds no question, or a line is no text.
    """
    for word in words:
        if word == STDIN:
            with opened(STDIN) as file:
                yield from _asked(file, sys.stdin.isatty())
        else:
            yield _argument(word)


def _argument(word: str) -> str:
    """A text from the command line; where the locale is not UTF-8, Python has kept its bytes as half surrogates."""
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:
        return word


def _asked(file: IO[bytes], at_terminal: bool) -> Iterator[str]:
    asked = False
    lines = raw_lines(file)
    for number in itertools.count(1):
        if at_terminal:
            print("question> ", end="", file=sys.stderr, flush=True)
        try:
            line = next(lines, None)
            text = None if line is None else decode_line(line).strip()
        except NotTextError as error:
            raise CommandError(f"standard input:{number}: {error}") from error
        if text is None:
            break
        if "\0" in text:
            raise CommandError(f"standard input:{number}: binary: the line holds NUL characters")
        if text:
            asked = True
            yield text
    if not asked and not at_terminal:
        raise CommandError("standard input holds no question")


def reasoning_text(reasoning: Reasoning) -> str:
    """What was thought, in one line, or that it was nothing."""
    if reasoning.finish_reason == "nothing_to_add":
        return "(nothing to add)"
    return " ".join(reasoning.reasoning.split()) or "(nothing)"


def one_line(error: BaseException) -> str:
    """What is printed of an error."""
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename else ""
        return f"{named}{error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory: try a smaller --batch-size"
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Let standard output and error take any character, and nothing where they are closed.

    Python has None for a closed stream, and ``print(file=None)`` prints to the other one.
    """
    before = sys.stdout, sys.stderr
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened takes its place, and gets what libraries print
            os.open(os.devnull, os.O_RDWR)
    with contextlib.ExitStack() as opened_here:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:
                setattr(sys, name, opened_here.enter_context(open(os.devnull, "w", encoding="utf-8")))
            elif isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


@contextlib.contextmanager
def quiet_libraries(verbose: bool) -> Iterator[None]:
    """Our own warnings as single lines, everybody else's not at all; with --verbose all logs, as they come."""
    handler = logging.StreamHandler()
    if verbose:
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logger, level = logging.getLogger(), logging.INFO
    else:
        handler.setFormatter(logging.Formatter("searchr3: warning: %(message)s"))
        logger, level = logging.getLogger("searchr3_embed"), logging.WARNING
    before = (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = verbose
    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
