"""An exit that finds threads inside of torch: they are waited for, as far as the next batch.

When Python ends, it ends a daemon's thread as soon as that comes back to Python. If torch, or any other C++, is below
it on the stack, the process dies of SIGABRT. So whoever computes says so, and looks between two batches whether the
interpreter is ending; then it stops there, for ever, in a place where that harms nobody.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import threading
import time
from collections.abc import Iterator

# A batch that takes longer is not waited for. Loading a large model does.
_MOST_SECONDS = 60.0

_leaving = threading.Event()
# Threads that compute, and how deep: a dictionary, because its single operations need no lock, which a fork could
# leave locked.
_computing: dict[int, int] = {}


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Says that this thread computes; an exit waits until it is done or comes to a :func:`stopping_place`."""
    thread = threading.get_ident()
    stopping_place()
    _computing[thread] = _computing.get(thread, 0) + 1
    try:
        yield
    finally:
        depth = _computing.get(thread, 1) - 1
        if depth:
            _computing[thread] = depth
        else:
            _computing.pop(thread, None)


def stopping_place() -> None:
    """Between two batches: returns at once, but never again while the interpreter ends."""
    if _leaving.is_set():
        # Nothing but Python is below a waiting lock, so the thread may be left behind here. Threads that ended their
        # work or that wait here are not waited for.
        _computing.pop(threading.get_ident(), None)
        threading.Event().wait()


def _wait_for_threads() -> None:
    this = threading.get_ident()
    _computing.pop(this, None)
    if not _computing:
        return
    _leaving.set()
    end = time.monotonic() + _MOST_SECONDS
    # Threads that ended without a word, as in a process that forked, are not waited for.
    while any(thread.ident in _computing for thread in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.01)


def _forget() -> None:
    this = threading.get_ident()
    for thread in list(_computing):
        if thread != this:
            del _computing[thread]


atexit.register(_wait_for_threads)
# torch imports this one while it exits, if it is installed, and the code that is compiled there makes Python forget
# that Ctrl-C ended the program: its exit status would be 1.
with contextlib.suppress(ImportError):
    importlib.import_module("tabulate")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
