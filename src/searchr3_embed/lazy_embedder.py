"""An embedder that loads on first use. The integrations hold one, so that making or copying an adapter is cheap."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  # see the end
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder

logger = logging.getLogger(__name__)

# How long a fork waits for a model that another thread is loading. A download takes longer; then the child loads it
# itself.
_FORK_WAITS_SECONDS = 30.0


class LazyEmbedder:
    """Loads a ReasoningEmbedder when it is first asked for, and only once, also when several threads ask.

    Copies and pickles leave the weights out; they load them again at their first use. A fork waits until the model
    that another thread is loading is there, so the child has it too.
    """

    def __init__(self) -> None:
        # Reentrant: what is loading may fork.
        self._lock = threading.RLock()
        self._loaded: dict[tuple[Any, ...], ReasoningEmbedder] = {}
        _lazy_embedders.add(self)

    def get(self, model: str, device: str | None, cache_folder: str | None) -> ReasoningEmbedder:
        """The embedder of these arguments.

        Raises:
            CheckpointError: The model can't be found, is damaged, or was never trained to embed.
        """
        key = (model, device, cache_folder)
        if key not in self._loaded:
            with self._lock:
                # Within the lock: a child that was forked in the middle of an import could never import it.
                from searchr3_embed.embedder import ReasoningEmbedder

                if key not in self._loaded:
                    self._loaded[key] = ReasoningEmbedder(model, device=device, cache_folder=cache_folder)
        return self._loaded[key]

    async def aget(self, model: str, device: str | None, cache_folder: str | None) -> ReasoningEmbedder:
        """As ``get``; the seconds that loading takes do not block the event loop."""
        if (model, device, cache_folder) in self._loaded:
            return self.get(model, device, cache_folder)
        return await asyncio.to_thread(self.get, model, device, cache_folder)

    def __reduce__(self) -> tuple[type[LazyEmbedder], tuple[()]]:
        return LazyEmbedder, ()


_lazy_embedders: weakref.WeakSet[LazyEmbedder] = weakref.WeakSet()
# By the thread that forks: two may do so at once.
_forking = threading.local()


def _before_fork() -> None:
    end = time.monotonic() + _FORK_WAITS_SECONDS
    _forking.held = []
    # In one order, so that two threads that fork at once do not wait for each other.
    for lazy in sorted(_lazy_embedders, key=id):
        if lazy._lock.acquire(timeout=max(0.0, end - time.monotonic())):
            _forking.held.append(lazy._lock)
        else:
            logger.warning("A process forks while a model is being loaded: the child will load its own.")


def _after_fork_in_parent() -> None:
    for lock in _forking.held:
        lock.release()
    _forking.held = []


def _after_fork_in_child() -> None:
    _forking.held = []
    for lazy in list(_lazy_embedders):
        lazy._lock = threading.RLock()


# What is registered last is called first, before a fork. Whoever loads needs the locks of ``logging`` and of thread
# pools, which these two take before a fork: so they must be registered by now.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
