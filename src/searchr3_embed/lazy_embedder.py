"""An embedder that loads on first use. The integrations hold one, so that making or copying an adapter is cheap."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder


class LazyEmbedder:
    """Loads a ReasoningEmbedder when it is first asked for, and only once, also when several threads ask.

    Copies and pickles leave the weights out; they load them again at their first use.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[tuple[Any, ...], ReasoningEmbedder] = {}

    def get(self, model: str, device: str | None, cache_folder: str | None) -> ReasoningEmbedder:
        """The embedder of these arguments.

        Raises:
            CheckpointError: The model can't be found, is damaged, or was never trained to embed.
        """
        key = (model, device, cache_folder)
        if key not in self._loaded:
            from searchr3_embed.embedder import ReasoningEmbedder

            with self._lock:
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
