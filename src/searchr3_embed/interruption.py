"""Ctrl-C: heard wherever a program is, told in one line, exit status 130. Imports nothing that takes time."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

STATUS = 130
"""Of a program that Ctrl-C ended: 128 and the number of the signal, as shells have it."""

_Handler = Callable[[int, FrameType | None], object]


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Within it, Ctrl-C raises KeyboardInterrupt, and once more at the end if somebody has caught the first.

    Libraries that catch every exception, and callbacks from C, from which none comes out, would else let a program go
    on as if nothing had been, or report an error of their own.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, whatever was made of it.
    """
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> NoReturn:
        pressed.append(number)
        raise KeyboardInterrupt

    before = _handle(note)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
        if pressed:
            raise KeyboardInterrupt


def run_module(name: str, told: str) -> int:
    """Imports the module of a command and runs its ``main()``; for the one who calls it last, the interpreter.

    Args:
        name: The module.
        told: What to say after Ctrl-C.

    Returns:
        The exit status.
    """
    _handle(_leaving(told))  # nothing has begun: an import would be left by a traceback of many lines
    return run(importlib.import_module(name).main, told)


def run(main: Callable[[], int], told: str) -> int:
    """Runs a command's ``main()``, see :func:`run_module`."""
    try:
        with heard():
            status = main()
    except KeyboardInterrupt:
        status = STATUS
        if sys.stderr is not None:
            sys.stderr.write(f"{told}\n")
    _handle(_leaving(""))  # all is said, and what is left is to tidy up, silently
    return status


def _leaving(told: str) -> _Handler:
    def leave(number: int, frame: FrameType | None) -> NoReturn:
        with contextlib.suppress(OSError):
            os.write(2, f"{told}\n".encode() if told else b"")
        os._exit(STATUS)

    return leave


def _handle(handler: _Handler) -> _Handler | None:
    """Sets what Ctrl-C does; returns what it did before, or None where that stays.

    It does where Ctrl-C is ignored, as in the background of a shell, and in another thread than the main one.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        return None
    signal.signal(signal.SIGINT, handler)
    return before
