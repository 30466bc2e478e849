"""Slots: where the keys and values of the rows in a batch are, written in place.

A slot holds one row. What the prompts share at their beginning may be put into every slot once and stay there; a row
that leaves frees its slot for another. Rows grow to the right, so no padding stands between the tokens of a row, and
its positions are simply its places: right for rotary and for absolute position models alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from searchr3_embed.engine.kv_memory import CacheMemory


class Slots(Cache):
    """A cache of ``rows`` slots with ``places`` tokens each, for all layers of a model.

    Args:
        model: Whose keys and values they hold.
        rows: Number of slots.
        places: Most tokens of a row.
    """

    def __init__(self, model: PreTrainedModel, rows: int, places: int) -> None:
        self.model, self.rows, self.places, self.prefix_length = model, rows, places, 0
        self.memory = CacheMemory.take(model)
        self.target_rows = slice(0, rows)
        self.target_places: slice | tuple[Tensor, Tensor] = slice(0, 0)
        self.end = self.written = 0
        super().__init__(layers=[SlotLayer(self) for _ in range(model.config.num_hidden_layers)])

    def aim(self, rows: slice, places: slice | tuple[Tensor, Tensor], end: int, written: int) -> None:
        """Sets where the next forward pass writes and how far it may look back.

        Args:
            rows: Slots of the rows that are computed.
            places: Where their tokens go: the same places in each slot, or pairs of slot and place, two int64 tensors
                that broadcast to (rows, tokens).
            end: The pass sees the places before it.
            written: Number of tokens in each row of the pass.
        """
        self.target_rows, self.target_places, self.end, self.written = rows, places, end, written

    def share(self, length: int) -> None:
        """Copies the first ``length`` places of the first slot into every other slot, where they stay."""
        for stored in self.tensors():
            stored[1:, :, :length] = stored[:1, :, :length]
        self.prefix_length = length

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copies whole slots over others; the shared beginning is the same everywhere and stays."""
        begin, end = self.prefix_length, self.end
        for stored in self.tensors():
            stored[target, :, begin:end] = stored[source, :, begin:end]

    def close(self) -> None:
        """Gives the memory back; nothing may be written or read from then on.

        Layers and slots refer to one another, so without this they, and what they hold, would stay until the garbage
        collector runs.
        """
        self.layers = []
        self.memory.give_back(self.model)

    def tensors(self) -> list[Tensor]:
        """Keys and values of all layers that were written to, each (slots, heads, places, head size)."""
        layers = [layer for layer in self.layers if isinstance(layer, SlotLayer)]
        return [stored for layer in layers for stored in (layer.keys, layer.values) if stored is not None]

    def additive_mask(self, allowed: Tensor) -> Tensor:
        """A mask to add to attention scores: 0 where allowed, the lowest number of the cache's dtype elsewhere."""
        tensors = self.tensors()
        dtype = tensors[0].dtype if tensors else torch.float32
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, seen as (slots, heads, places, head size), written in place.

    Where the next ``update`` writes is set by :meth:`Slots.aim` before each forward pass.
    """

    is_sliding = False

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes memory of the right shape, dtype and device."""
        # A place has all its heads side by side, so that what a row does not reach is in pages of its own.
        places = (self.slots.rows, self.slots.places, key_states.shape[1])
        self.keys = self.slots.memory.room((*places, key_states.shape[-1]), key_states).transpose(1, 2)
        self.values = self.slots.memory.room((*places, value_states.shape[-1]), value_states).transpose(1, 2)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes where the slots aim, and returns all keys and values that the pass may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        rows, places, end = self.slots.target_rows, self.slots.target_places, self.slots.end
        if isinstance(places, slice):
            self.keys[rows, :, places] = key_states
            self.values[rows, :, places] = value_states
        else:
            self.keys[places[0], :, places[1]] = key_states.transpose(1, 2)
            self.values[places[0], :, places[1]] = value_states.transpose(1, 2)
        return self.keys[rows, :, :end], self.values[rows, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of places that the pass sees, and the first of them."""
        return self.slots.end, 0

    def get_seq_length(self) -> int:
        """Number of places before those that the pass writes."""
        return self.slots.end - self.slots.written

    def get_max_length(self) -> int:
        """Most tokens of a row."""
        return self.slots.places
