"""Whole folders: what is written into a folder takes the place of what was there in one step.

For libraries that write files, or many files, by themselves. Single files are written through ``files``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from searchr3_embed.files import UNFINISHED, errors_naming, lock, remove_unfinished, unfinished_path

# Who saves into a folder with more of other things in it (a home, say) does not mean the folder to be one model's.
_MOST_OTHER_FILES = 10_000
_AT_WORKING_FOLDER, _EXCHANGE = -100, 2  # of renameat2, see its manual page; macOS calls the same 2 RENAME_SWAP


@contextlib.contextmanager
def replacing_files(
    folder: str | os.PathLike[str], stale: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    """Give an empty folder to write into; when all is written, its files take their places in ``folder``.

    Whatever stops it, SIGKILL among it, ``folder`` holds afterwards what it held before or all of the new: the new
    folder is put together beside it, with the other files of ``folder`` linked into it, and the two change their
    names in one step. Where that is impossible, the files are renamed one by one: then an error or a signal that can
    be caught leaves one or the other, and only SIGKILL in the moment of the renaming a mix. These are the cases: the
    system is neither Linux nor macOS; the file system has no such exchange (some network ones); the folder above may
    not be written, or ``folder`` is a mount; the process works in ``folder``; it holds more than 10,000 other files
    or some whose owner can't be kept; one of the files to be replaced in it is a link, which is followed.

    What a killed process left is removed by the next call. Permissions are those that the umask gives, whatever the
    library chose (safetensors, for one, lets only the owner read what it writes); ``folder`` itself keeps its own.

    Args:
        folder: Where the files belong; made when missing, and then not there before it is whole. A link is followed.
        stale: Says by its name whether a file right in ``folder`` has to go if it is not written again.

    Raises:
        OSError: The folder can't be written. ``filename`` is a path in ``folder``, never a temporary one.
    """
    folder = Path(folder)
    target = Path(os.path.realpath(folder))
    with errors_naming(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        remove_unfinished(target)
        remove_unfinished(target.parent, target.name)
        scratch, descriptor = _scratch(target)
    try:
        with errors_naming(folder, below=scratch):
            yield scratch
            with _undisturbed():
                _into_place(scratch, target, stale)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _scratch(target: Path) -> tuple[Path, int | None]:
    """A locked folder to write into: beside ``target`` if it can take its place, else inside of it."""
    if not target.is_dir():
        return _locked_folder(target.parent, target.name)
    if sys.platform in ("linux", "darwin") and target != target.parent and not _is_worked_in(target):
        with contextlib.suppress(OSError):
            scratch, descriptor = _locked_folder(target.parent, target.name)
            with contextlib.suppress(OSError):
                _copy_attributes(target, scratch)
                if _takes_files_from(scratch, target):
                    return scratch, descriptor
            scratch.rmdir()
            if descriptor is not None:
                os.close(descriptor)
    return _locked_folder(target)


def _takes_files_from(scratch: Path, target: Path) -> bool:
    """Whether files can be renamed from the one into the other, should the folders not change their names."""
    if not os.access(target, os.W_OK | os.X_OK):
        return False
    try:
        os.rename(scratch / "nothing", target / "nothing")
    except FileNotFoundError:  # said only when both are on the same mount
        return True
    except OSError:
        return False
    return True


def _locked_folder(parent: Path, name: str = "") -> tuple[Path, int | None]:
    while True:
        scratch = unfinished_path(parent, name)
        scratch.mkdir()
        try:
            descriptor = lock(scratch)
        except (FileNotFoundError, BlockingIOError):  # another process took it for a remain before it was locked
            continue
        except OSError:  # some network file systems have no locks
            descriptor = None
        if scratch.is_dir():
            return scratch, descriptor
        if descriptor is not None:
            os.close(descriptor)


def _is_worked_in(target: Path) -> bool:
    """Whether it would be a removed folder that this process, and most likely its user's shell, works in."""
    with contextlib.suppress(OSError):
        return Path(os.path.realpath(Path.cwd())).is_relative_to(target)
    return False


def _copy_attributes(old: str | Path, new: Path) -> None:
    """Give a copy the owner, permissions and access list of what it is a copy of."""
    shutil.copystat(old, new, follow_symlinks=False)
    found, made = os.lstat(old), os.lstat(new)
    if (found.st_uid, found.st_gid) != (made.st_uid, made.st_gid):
        os.chown(new, found.st_uid, found.st_gid, follow_symlinks=False)


def _into_place(scratch: Path, target: Path, stale: Callable[[str], bool]) -> None:
    written = sorted(scratch.rglob("*"))
    _set_permissions(scratch, written)
    if not target.is_dir():
        try:
            os.rename(scratch, target)
            return
        except OSError:
            if not target.is_dir():  # another process has made it meanwhile
                raise
    if scratch.parent == target.parent and _exchange_folders(scratch, target, stale):
        return
    for path in written:
        place = target / path.relative_to(scratch)
        if path.is_dir() and not path.is_symlink():
            place.mkdir(exist_ok=True)
        else:
            os.replace(path, os.path.realpath(place))
    names = {path.name for path in written if path.parent == scratch}
    for old in list(target.iterdir()):
        if old.name not in names and stale(old.name) and not old.is_dir():
            old.unlink()


def _set_permissions(scratch: Path, written: list[Path]) -> None:
    probe = unfinished_path(scratch)
    os.close(os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666))  # the umask can't be read without changing it
    permissions = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in written:
        if path.is_file() and not path.is_symlink():
            path.chmod(permissions)


def _exchange_folders(scratch: Path, target: Path, stale: Callable[[str], bool]) -> bool:
    """Let a complete new folder and the old one change their names; False, and nothing has happened, if they can't."""
    old = None
    try:
        _take_over(target, scratch, stale)
        with contextlib.suppress(OSError):  # locked by another process that saves here: then that one takes care
            old = lock(target)
        if not _exchange(scratch, target):
            return False
        # What another process has put into the old folder in the meantime.
        with contextlib.suppress(OSError):
            _take_over(scratch, target, stale)
        return True
    except OSError:
        return False
    finally:
        if old is not None:
            os.close(old)


def _take_over(old: Path, new: Path, stale: Callable[[str], bool]) -> None:
    """Link all that ``old`` holds and ``new`` does not into ``new``; copy it where there are no links.

    Raises:
        OSError: Something stands in the way: a link that has to be followed, a folder in a file's place, a mount,
            another process's unfinished folder, too many files.
    """
    device, count = old.stat().st_dev, 0
    for place, folders, names in os.walk(old, onerror=_raise):
        beside = new / os.path.relpath(place, old)
        for name in (*folders, *names):
            count += 1
            path, copy = Path(place, name), beside / name
            found = path.lstat()
            written = os.path.lexists(copy)
            if stat.S_ISDIR(found.st_mode):
                if found.st_dev != device or name.endswith(UNFINISHED) or (written and not _is_folder(copy)):
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                if not written:
                    copy.mkdir()
                    _copy_attributes(path, copy)
            elif written:
                if path.is_symlink() and not os.path.samestat(found, copy.lstat()) or _is_folder(copy):
                    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            elif not (place == os.fspath(old) and stale(name)):
                _link(path, copy)
            if count > _MOST_OTHER_FILES:
                raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))


def _raise(error: OSError) -> None:
    raise error


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _link(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy, follow_symlinks=False)
    except OSError:
        if not path.is_symlink() and not path.is_file():  # copying a pipe waits for ever
            raise
        shutil.copyfile(path, copy, follow_symlinks=False)
        _copy_attributes(path, copy)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change their names in one step; False where the system or the file system can't."""
    import ctypes

    libc: Any = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            status = libc.renamex_np(*names, ctypes.c_uint(_EXCHANGE))
        else:
            here = ctypes.c_int(_AT_WORKING_FOLDER)
            status = libc.renameat2(here, names[0], here, names[1], ctypes.c_uint(_EXCHANGE))
    except AttributeError:  # a C library without it
        return False
    return bool(status == 0)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Ctrl-C and the signals that ask to stop wait, so that the old files do not stand beside the new."""
    received: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not None:  # None: not set by Python
                before[number] = signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in received[:1]:
            signal.raise_signal(number)
