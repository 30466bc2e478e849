"""Memory for keys and values that outlives a call.

On a CPU, memory that was just asked for costs a page fault for every 4 KiB that is touched first, and for the keys and
values of 64 rows that is a tenth of the time of a call. So a model's next call gets what its last one used.
"""

from __future__ import annotations

import math
import mmap
import sys
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# More than this is not kept between calls: what nobody uses should not fill a machine.
_MOST_BYTES_KEPT = 2**28

_kept: weakref.WeakKeyDictionary[nn.Module, list[Tensor]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class CacheMemory:
    """Flat buffers, handed out one by one. Calls that overlap have different ones."""

    def __init__(self, spare: list[Tensor]) -> None:
        self._spare, self._used = spare, list[tuple[Tensor, int]]()

    @classmethod
    def take(cls, model: nn.Module) -> CacheMemory:
        """What the model's last call gave back, which no other call gets now; nothing if there is none."""
        with _lock:
            return cls(_kept.pop(model, []))

    def room(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """A tensor of this shape, with the dtype and device of ``like``.

        It holds finite numbers, for a place that is masked has weight 0, and 0 times NaN would still be NaN.
        """
        size = math.prod(shape)
        buffer = self._spare.pop() if self._spare else None
        if buffer is None or len(buffer) < size or buffer.dtype != like.dtype or buffer.device != like.device:
            buffer = None  # before the new one is made, so that both are never there at once
            # A tensor born in inference mode could not be written by a later call outside of it.
            with torch.inference_mode(False):
                buffer = _zeros(size, like)
        self._used.append((buffer, size))
        return buffer[:size].view(*shape)

    def give_back(self, model: nn.Module) -> None:
        """Keeps the buffers for the model's next call, if they are on a CPU, not too large, and hold finite numbers.

        Of calls that overlapped, the one with the largest buffers is remembered: a small call can use them as well.
        On a GPU torch itself keeps memory. A call that fails gives nothing back, and its memory is freed.
        """
        used, self._used, self._spare = self._used[::-1], [], []
        if (
            all(buffer.device.type == "cpu" for buffer, _ in used)
            and _nbytes(buffers := [buffer for buffer, _ in used]) <= _MOST_BYTES_KEPT
            # A sum with a number that is not finite is none, and is quickly taken.
            and all(bool(torch.isfinite(buffer[:size].sum())) for buffer, size in used)
        ):
            with _lock:
                _kept[model] = max(_kept.get(model, []), buffers, key=_nbytes)


def _zeros(size: int, like: Tensor) -> Tensor:
    """``like.new_zeros(size)``; of it a CPU holds only what was written to, where the system can do that.

    Slots have room for the longest prompt and the whole budget, and most rows need half of it.
    """
    if sys.platform == "win32" or like.device.type != "cpu" or not size:
        return like.new_zeros(size)
    pages = mmap.mmap(-1, size * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=like.dtype)


def _nbytes(buffers: Sequence[Tensor]) -> int:
    return sum(buffer.nbytes for buffer in buffers)
