"""The one place for writing files whole, reading text files of any origin, and putting names into messages.

Whole folders: see ``folders``.

It imports nothing of ours, so that every part of the package, and the training beside it, can use it.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

if sys.platform != "win32":  # there, a file that is open can't be deleted: that is lock enough
    import fcntl

UNFINISHED = ".unfinished"

# --------------------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "wb", *, private: bool = False) -> Iterator[IO[Any]]:
    """Open a file for writing that takes its name only when it is complete.

    Whatever stops the writing, a crash of the machine aside, there is afterwards either the whole new file or what was
    there before. What a killed process left unfinished is removed by the next call for the same path. A link is
    followed: the file that it points to is replaced. Folders above the file are made.

    Args:
        path: The file to write.
        mode: ``"wb"`` for bytes, ``"w"`` for UTF-8 text, whose line ends are written as they are.
        private: Let only the owner read the file. Otherwise a new file has the permissions that the umask gives, and
            a replaced one those that it had.

    Raises:
        OSError: The file can't be written. ``filename`` is the path, never the temporary one.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode must be 'wb' or 'w', got {mode!r}.")
    path = Path(path)
    target = Path(os.path.realpath(path))
    with errors_naming(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():  # a device or a pipe is written to, it can't be replaced
            raw, temporary = _NamedFile(target, path), None
        else:
            raw, temporary = _unfinished_file(target, path, private)
    try:
        with io.BufferedWriter(raw) as file:
            if mode == "wb":
                yield file
            else:
                with io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
                    yield text
        if temporary is not None:
            with errors_naming(path):
                os.replace(temporary, target)
    except BaseException:
        if temporary is not None:
            with contextlib.suppress(OSError):
                raw.close()
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str, *, private: bool = False) -> None:
    """Write a whole UTF-8 file or nothing, see ``replacing``."""
    with replacing(path, "w", private=private) as file:
        file.write(text)


def write_json(
    path: str | os.PathLike[str], value: Any, *, indent: int | None = 2, sort_keys: bool = False, private: bool = False
) -> None:
    """Write a value as a whole JSON file or nothing, see ``replacing``."""
    write_text(path, json.dumps(value, indent=indent, sort_keys=sort_keys, ensure_ascii=False) + "\n", private=private)


def remove_unfinished(folder: str | os.PathLike[str], name: str = "") -> None:
    """Remove what killed processes left of files and folders that they were writing.

    What a living process is writing holds a lock and stays.

    Args:
        folder: Where to look; nothing happens if there is no such folder.
        name: The file or folder whose remains are meant, empty for those that ``folders.replacing_files`` has inside
            of ``folder``.
    """
    for path in _remains(Path(folder), name):
        with contextlib.suppress(OSError):
            descriptor = lock(path)
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                if descriptor is not None:
                    os.close(descriptor)


def _remains(folder: Path, name: str) -> list[Path]:
    start = _hidden(name)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if entry.name.startswith(start)
            and entry.name.endswith(UNFINISHED)
            and len(entry.name) == len(start) + 12 + len(UNFINISHED)
        ]
    return []


def unfinished_path(folder: Path, name: str = "") -> Path:
    """A name that nothing has yet, for what ``remove_unfinished`` finds by the same arguments."""
    return folder / f"{_hidden(name)}{os.urandom(6).hex()}{UNFINISHED}"


def _hidden(name: str) -> str:
    """The beginning of a temporary name: a whole name has at most 255 bytes."""
    return f".{os.fsencode(name)[:200].decode(errors='ignore')}." if name else "."


class _NamedFile(io.FileIO):
    """A file whose errors carry the name that the caller knows."""

    def __init__(self, file: int | Path, shown: Path) -> None:
        super().__init__(file, "wb")
        self._shown = shown

    def write(self, data: Any) -> int:
        with errors_naming(self._shown):
            return super().write(data)

    def close(self) -> None:
        with errors_naming(self._shown):  # a network file system says only now that the disk is full
            super().close()

    def fileno(self) -> int:
        # numpy would write past this object and say how many items were written, not that the disk is full.
        raise io.UnsupportedOperation("fileno")


def _unfinished_file(target: Path, shown: Path, private: bool) -> tuple[_NamedFile, Path]:
    remove_unfinished(target.parent, target.name)
    while True:
        temporary = unfinished_path(target.parent, target.name)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(temporary, flags, 0o600 if private else 0o666)
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not temporary.exists():  # another process took it for a remain before it was locked
                os.close(descriptor)
                continue
            if not private and target.exists():
                with contextlib.suppress(OSError):
                    os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
        return _NamedFile(descriptor, shown), temporary


def lock(path: Path) -> int | None:
    """Lock a file or folder for as long as the descriptor is open; None where there are no such locks.

    Raises:
        OSError: A living process has locked it.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def errors_naming(path: Path, below: Path | None = None) -> Iterator[None]:
    """Let an OSError carry the path that the caller knows; one ``below`` a scratch folder becomes one in ``path``."""
    try:
        yield
    except OSError as error:
        if below is None:
            error.filename, error.filename2 = os.fspath(path), None
        elif error.filename is None:
            error.filename = os.fspath(path)
        elif (named := os.fsdecode(error.filename)).startswith(os.fspath(below)):
            error.filename, error.filename2 = os.fspath(path / os.path.relpath(named, below)), None
        raise


# --------------------------------------------------------------------------------------------------- reading


class NotTextError(ValueError):
    """A file that holds no text. The message says why and does not name the file."""


class TextFile(NamedTuple):
    r"""The text of a file.

    Attributes:
        text: The text. Its lines end in ``\n`` whatever they end in on disk, and in nothing else: an editor and
            ``text.split("\n")`` give a line the same number.
        guessed: Whether the file is not valid in the encoding that it should have, so that some characters may be
            wrong.
    """

    text: str
    guessed: bool = False


def read_text(path: str | os.PathLike[str]) -> TextFile:
    """Read a text file: UTF-8, or UTF-16 and UTF-32 with their mark, else the nearest guess.

    Raises:
        OSError: The file can't be read.
        NotTextError: It is no regular file (a pipe would wait for ever), or holds bytes that no text has.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise NotTextError("not a regular file") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotTextError("not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read()
    finally:
        os.close(descriptor)
    return decode_text(data)


def decode_text(data: bytes) -> TextFile:
    """The text of a file's bytes, see ``read_text``.

    Raises:
        NotTextError: The bytes are not text.
    """
    guessed = False
    if marked := next((name for mark, name in _MARKS if data.startswith(mark)), None):
        try:
            text = data.decode(marked)
        except UnicodeDecodeError as error:
            raise NotTextError(f"not {marked.upper()} text, though it starts like it ({error.reason})") from None
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text, guessed = _guess(data), True
    if "\0" in text:
        raise NotTextError("binary")
    return TextFile(text.replace("\r\n", "\n").replace("\r", "\n"), guessed)


# The mark of UTF-16 is the beginning of that of UTF-32.
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def _guess(data: bytes) -> str:
    """UTF-8 with replacement characters if most of what is not ASCII is valid (a damaged file), else Latin-1."""
    text = data.decode("utf-8-sig", errors="replace")
    wrong = text.count("\ufffd")
    beyond_ascii = len(text) - len(text.encode("ascii", errors="ignore"))
    return text if beyond_ascii > 2 * wrong else data.decode("latin-1")


def raw_lines(file: IO[bytes]) -> Iterator[bytes]:
    r"""The lines of a file, one after the other, in UTF-8 and without their ends.

    Only a line feed ends a line, or one behind a carriage return. A byte order mark is passed over; a file with the
    mark of UTF-16 or UTF-32 is decoded as a whole.

    Args:
        file: Open for reading, at its beginning.

    Raises:
        NotTextError: It has the mark of UTF-16 or UTF-32 and is not such text.
    """
    first = file.readline()
    if any(first.startswith(mark) for mark, _ in _MARKS):
        text = decode_text(first + file.read()).text
        yield from (line.encode("utf-8", "surrogatepass") for line in text.removesuffix("\n").split("\n") if text)
        return
    line = first.removeprefix(codecs.BOM_UTF8)
    while first:
        yield line.removesuffix(b"\n").removesuffix(b"\r")
        first = line = file.readline()


def decode_line(line: bytes) -> str:
    """The text of a line of ``raw_lines``.

    Raises:
        NotTextError: It is not valid UTF-8.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotTextError(f"not UTF-8 text ({error.reason} at byte {error.start + 1} of the line)") from None


# -------------------------------------------------------------------------------------------------- messages


def printable(text: str) -> str:
    """The text with everything escaped that a terminal can't show as it is.

    That is control characters, line ends among them, and half surrogate pairs; file names hold both.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shorten(text: str, width: int) -> str:
    """One printable line of at most ``width`` characters, with three dots where something is missing.

    White space becomes single blanks.
    """
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: max(0, width - 3)].rstrip() + "..."


def first_line(error: BaseException) -> str:
    """``TypeName: first line of the message``, or the type's name alone where there is no message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip()}" if lines else type(error).__name__


def describe_surrogate(text: str) -> str | None:
    """Words for the first lone surrogate of a text, None for valid Unicode.

    JSON can escape half of a surrogate pair, and file names can hold one; no file and no tokenizer takes it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            f"the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, "
            "which is not valid Unicode text"
        )
    return None


def check_unicode(text: str, name: str = "The text") -> str:
    """Return the text if it is valid Unicode.

    Args:
        text: Any string.
        name: What the message calls it.

    Raises:
        ValueError: It holds a lone surrogate.
    """
    if found := describe_surrogate(text):
        raise ValueError(f"{name} holds {found}; decode the source with errors='replace', or remove it.")
    return text
