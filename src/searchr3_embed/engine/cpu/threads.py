"""Threads that torch's OpenMP keeps for a thread that computes nothing now.

Every thread that computes has helpers of its own, and GNU's OpenMP lets helpers wait awake between two operations only
while there are no more of them in the process than processors. Otherwise they sleep and are woken for each operation,
which makes a call on one text a third slower. So whoever passes work to another thread should let go of his helpers;
those that are needed again are there within a tenth of a millisecond.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

# ``omp_pause_soft`` of the OpenMP specification 5.0, section 3.2.43: frees threads and keeps settings.
_SOFT = 1


def release_helpers() -> None:
    """Ends the helpers of the calling thread, if torch runs on GNU's OpenMP; its next operation starts others.

    In a forked process it does nothing: the helpers are not there, and OpenMP would wait for their end forever.
    """
    release = _pause()
    if release is not None and not _forked:
        release(_SOFT)


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


@functools.cache
def _pause() -> Callable[[int], int] | None:
    """``omp_pause_resource_all`` of the library that torch has loaded; None where it uses another OpenMP."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            # Never load a second one beside torch's.
            function = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD).omp_pause_resource_all
        except (OSError, AttributeError) as problem:
            logger.debug("%s: %s", path, problem)
            continue
        function.argtypes, function.restype = [ctypes.c_int], ctypes.c_int
        return function
    return None
