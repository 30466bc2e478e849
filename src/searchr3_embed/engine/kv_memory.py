"""Memory for keys and values that is kept from one call to the next.

On a CPU, fresh memory costs a page fault for every 4 KiB when it is first touched. For the keys and values of 64 rows
that is a tenth of a call's time. So a model's next call gets the memory that its last one used.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# More than this is not kept between calls: memory that nobody uses should not fill a machine.
_MOST_BYTES_KEPT = 2**28

_kept: weakref.WeakKeyDictionary[nn.Module, list[Tensor]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _begin_anew() -> None:
    """In a forked child, nobody will release a lock that another thread held."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


class CacheMemory:
    """Flat buffers, handed out one by one. Calls that overlap in time have different ones."""

    def __init__(self, spare: list[Tensor]) -> None:
        self._spare, self._used = spare, list[tuple[Tensor, int]]()

    @classmethod
    def take(cls, model: nn.Module) -> CacheMemory:
        """Takes what the model's last call gave back, so that no other call gets it; it may be nothing."""
        with _lock:
            return cls(_kept.pop(model, []))

    def room(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """A tensor of this shape, with the dtype and device of ``like``.

        All its numbers are finite: a masked place has weight 0 in attention, and 0 times NaN would be NaN.
        """
        size = math.prod(shape)
        buffer = self._spare.pop() if self._spare else None
        if buffer is None or len(buffer) < size or buffer.dtype != like.dtype or buffer.device != like.device:
            buffer = None  # frees the old one before the new one is made
            # A tensor made in inference mode could not be written to by a later call outside of it.
            with torch.inference_mode(False):
                buffer = _zeros(size, like)
        self._used.append((buffer, size))
        return buffer[:size].view(*shape)

    def give_back(self, model: nn.Module) -> None:
        """Keeps the buffers for the model's next call, if they are on a CPU, not too large, and hold finite numbers.

        When calls overlap, the largest buffers are kept: a small call can use them as well. On a GPU torch itself
        keeps memory. A call that fails gives nothing back, and its memory is freed.
        """
        used, self._used, self._spare = self._used[::-1], [], []
        if (
            all(buffer.device.type == "cpu" for buffer, _ in used)
            and _nbytes(buffers := [buffer for buffer, _ in used]) <= _MOST_BYTES_KEPT
            # One number that is not finite makes the sum not finite, and a sum is quick.
            and all(bool(torch.isfinite(buffer[:size].sum())) for buffer, size in used)
        ):
            with _lock:
                _kept[model] = max(_kept.get(model, []), buffers, key=_nbytes)


def _zeros(size: int, like: Tensor) -> Tensor:
    """As ``like.new_zeros(size)``; on a CPU, only what is written to takes memory, where the system allows that.

    Slots have places for the longest prompt and the whole budget, and most rows need half of them.
    """
    if sys.platform == "win32" or like.device.type != "cpu" or not size:
        return like.new_zeros(size)
    pages = mmap.mmap(-1, size * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=like.dtype)


def _nbytes(buffers: Sequence[Tensor]) -> int:
    return sum(buffer.nbytes for buffer in buffers)
