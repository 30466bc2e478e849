"""The async twins of an embedder's methods: concurrent calls with the same options share batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers.util import quantize_embeddings

from searchr3_embed.async_batching import Coalescer
from searchr3_embed.given_reasoning import attach
from searchr3_embed.inputs import as_texts

# Async calls that wait together are computed in batches of so many rows, unless they say otherwise: they are what a
# server has at hand, and none of them chose the 32 rows that are the default of a call with many texts.
_ROWS_OF_CALLS = 64
# Their scales are those of all the vectors of a call.
_SCALED = ("int8", "uint8")


class AsyncEmbedding:
    """Mixed into an embedder."""

    async def aencode_query(self, inputs: str | Sequence[str], **kwargs: Any) -> Any:
        """As ``encode_query``, without blocking the event loop.

        Concurrent calls with the same options run together, 64 rows at once unless ``batch_size`` says otherwise.
        Questions go before the batches of a call with many texts. A call that is cancelled costs no further batch.
        """
        return await self._encode_async("encode_query", inputs, kwargs)

    async def aencode_document(self, inputs: str | Sequence[str], **kwargs: Any) -> Any:
        """As ``encode_document``, without blocking the event loop; see ``aencode_query`` for calls that meet."""
        return await self._encode_async("encode_document", inputs, kwargs)

    async def _encode_async(self, method: str, inputs: str | Sequence[str], options: dict[str, Any]) -> Any:
        texts = as_texts(inputs)
        if "reasoning" in options:  # a text and its reasoning are one item, so that calls can be joined and cut
            reasoning, options = options["reasoning"], {k: v for k, v in options.items() if k != "reasoning"}
            texts = attach(texts, reasoning, isinstance(inputs, str), cast(Any, self).conversation)
        precision = None
        if options.get("precision") in _SCALED and _is_of_sentences(options):
            precision = options.pop("precision")
        key = (method, tuple(sorted(options.items())))
        try:
            hash(key)
        except TypeError:
            raise TypeError(
                f"Async calls take only plain options (numbers, texts, True, False), got {options!r}."
            ) from None
        if not texts:
            return self._encode_batch(key, texts)
        # Of the two event loops of two threads, one makes it.
        coalescer = vars(self).get("_coalescer") or vars(self).setdefault("_coalescer", Coalescer(size=len))
        rows = options.get("batch_size", _ROWS_OF_CALLS)
        rows = rows if isinstance(rows, int) and rows > 0 else _ROWS_OF_CALLS  # the method itself refuses others
        future = coalescer.submit(self._encode_batch, key, texts, rows=rows, urgent=method == "encode_query")
        results = _together(await asyncio.wrap_future(future), options, precision)
        return results[0] if isinstance(inputs, str) else results

    def _encode_batch(self, key: tuple[str, tuple[tuple[str, Any], ...]], texts: list[str]) -> Any:
        method, options = key
        return getattr(self, method)(texts, **{"batch_size": _ROWS_OF_CALLS, **dict(options)})

    def __getstate__(self) -> dict[str, Any]:
        # Threads and locks neither copy nor travel to pool workers; a fresh worker starts on the first async call.
        return {name: value for name, value in self.__dict__.items() if name != "_coalescer"}


def _together(rows: list[Any], options: dict[str, Any], precision: Any) -> Any:
    """What the blocking method returns for all texts of a call, from its results of each."""
    as_tensor = options.get("convert_to_tensor")
    if precision is not None:
        vectors = quantize_embeddings(rows, precision)
        if as_tensor:
            return torch.from_numpy(vectors)
        return vectors if options.get("convert_to_numpy", True) else list(torch.from_numpy(vectors))
    if isinstance(rows[0], np.ndarray):
        return np.stack(rows)
    return torch.stack(rows) if as_tensor and _is_of_sentences(options) else rows


def _is_of_sentences(options: dict[str, Any]) -> bool:
    return options.get("output_value", "sentence_embedding") == "sentence_embedding"
