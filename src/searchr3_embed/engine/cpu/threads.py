"""OpenMP's helper threads: ends those of a thread that hands its work to another thread.

Every thread that runs torch operations gets helper threads from OpenMP, and they stay when it has nothing to compute.
Between two operations, GNU's OpenMP keeps helpers awake only while the process has no more threads of this kind than
the machine has processors. With more, helpers sleep and are woken for each operation, which makes a call on one text a
third slower. So a thread that passes its work on should end its helpers; if it needs some again, starting them takes a
tenth of a millisecond.
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
    """Ends the helpers of the calling thread if torch runs on GNU's OpenMP; its next operation starts new ones.

    Does nothing in a forked process: the helpers were not copied, and OpenMP would wait forever for them to end.
    """
    release = _pause()
    if release is not None and not _forked:
        release(_SOFT)


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True
    # A forked child has the model but not OpenMP's threads, and would wait for them forever.
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


@functools.cache
def _pause() -> Callable[[int], int] | None:
    """``omp_pause_resource_all`` of the library that torch has loaded; None where it uses another OpenMP."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            # RTLD_NOLOAD: only the library that is loaded already, never a second one beside it.
            function = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD).omp_pause_resource_all
        except (OSError, AttributeError) as problem:
            logger.debug("%s: %s", path, problem)
            continue
        function.argtypes, function.restype = [ctypes.c_int], ctypes.c_int
        return function
    return None
