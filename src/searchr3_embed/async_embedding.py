"""The async twins of an embedder's methods: concurrent calls with the same options run as one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from searchr3_embed.async_batching import Coalescer
from searchr3_embed.inputs import as_texts

# Async calls that wait together are computed in batches of so many rows, unless they say otherwise: they are what a
# server has at hand, and none of them chose the 32 rows that are the default of a call with many texts.
_ROWS_OF_CALLS = 64


class AsyncEmbedding:
    """Mixed into an embedder."""

    _coalescer: Coalescer | None = None

    async def aencode_query(self, inputs: str | Sequence[str], **kwargs: Any) -> Any:
        """As ``encode_query``, without blocking the event loop.

        Concurrent calls with the same options run together, 64 rows at once unless ``batch_size`` says otherwise.
        """
        return await self._encode_async("encode_query", inputs, kwargs)

    async def aencode_document(self, inputs: str | Sequence[str], **kwargs: Any) -> Any:
        """As ``encode_document``, without blocking the event loop.

        Concurrent calls with the same options run together, 64 rows at once unless ``batch_size`` says otherwise.
        """
        return await self._encode_async("encode_document", inputs, kwargs)

    async def _encode_async(self, method: str, inputs: str | Sequence[str], options: dict[str, Any]) -> Any:
        texts = as_texts(inputs)
        if self._coalescer is None:
            self._coalescer = Coalescer(self._encode_merged)
        key = (method, tuple(sorted(options.items())))
        try:
            hash(key)
        except TypeError:
            raise TypeError(
                f"Async calls take only plain options (numbers, texts, True, False), got {options!r}."
            ) from None
        rows = await asyncio.wrap_future(self._coalescer.submit(key, texts))
        if isinstance(inputs, str):
            return rows[0]
        return rows

    def _encode_merged(self, key: tuple[str, tuple[tuple[str, Any], ...]], texts: list[str]) -> Any:
        method, options = key
        return getattr(self, method)(texts, **{"batch_size": _ROWS_OF_CALLS, **dict(options)})

    def __getstate__(self) -> dict[str, Any]:
        # Threads and locks neither copy nor travel to pool workers; a fresh worker starts on the first async call.
        return {**self.__dict__, "_coalescer": None}
