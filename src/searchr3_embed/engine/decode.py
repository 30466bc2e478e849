"""The engine: token ids in, reasoning ids and hidden states out, in one pass.

The token that closes a row is fed once more and its last hidden state is the embedding, so no second forward over
the whole sequence is needed. Keys and values live in *slots*, one per row of the batch, written in place: a row that
finishes frees its slot, a waiting row takes it, and what the prompts share at their beginning is computed once and
stays in every slot. Rows grow to the right in their slot, so no padding stands between a row's tokens, and positions
are simply their places: right for rotary and for absolute position models alike.

This module knows tensors and caches, not text. It neither normalises nor truncates embeddings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from searchr3_embed.engine.cpu import bert_forward
from searchr3_embed.engine.head import bar, rough_head
from searchr3_embed.engine.kv_memory import CacheMemory

# A shared beginning shorter than this is cheaper to compute again than to keep apart.
_LEAST_SHARED_PREFIX = 16
# Tokens of one forward pass. On a CPU what a thread computes should stay in its cache; a GPU must be filled.
_TOKENS_PER_THREAD, _TOKENS_ELSEWHERE = 1024, 65536
# A pass of this share of them is large enough to end before rows that are much shorter.
_LEAST_SHARE, _MUCH_SHORTER = 0.25, 0.8
# A pass of which more than this is padding leaves it out where it can.
_LEAST_PADDING = 0.05
# Where rows are few, each also reads the embed token ahead, in case it is next: that costs little and saves a step.
_FEW_ROWS = 8
# Waiting rows enter when this share of the slots is free: one prefill for several rows is cheaper than one for each.
_ADMIT_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Generation:
    """What the model wrote for one prompt, and where that left it.

    Attributes:
        ids: The generated token ids, the embed token not included.
        finished: True if the model wrote the embed token itself; False if it was appended because the budget was
            used up or the model ended its turn without it.
        state: Last hidden state (after the final norm) at the embed token, shape (hidden size,), float32.
        chosen: Every token that the model chose, on request: ``ids`` and the one that ended the row, be it the embed
            token, a stop token, or what the budget left no room for.
        log_probabilities: Of each chosen token, in the distribution that it was chosen from.
    """

    ids: list[int]
    finished: bool
    state: Tensor
    chosen: list[int] = dataclasses.field(default_factory=list)
    log_probabilities: list[float] = dataclasses.field(default_factory=list)


@torch.no_grad()
def embed(
    model: PreTrainedModel,
    turns: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Last hidden state at the last token of each turn: one forward each, no LM head.

    Args:
        model: A causal language model.
        turns: Token ids, one non-empty list per row.
        batch_size: Most rows in one forward pass; passes are also cut by tokens.
        progress: Called with the number of rows done since the last call.

    Returns:
        Float32 tensor of shape (rows, hidden size) on the model's device, in the order of ``turns``.
    """
    states = torch.empty(len(turns), model.config.hidden_size, dtype=torch.float32, device=model.device)
    prefix = _shared_prefix(turns)
    lean = bert_forward.fits(model)
    slots = None
    for rows in _chunks(turns, batch_size, tokens_per_forward(model)):
        bodies = [turns[row][len(prefix) :] for row in rows]
        if prefix and slots is None:
            # The first chunk holds the longest turn.
            slots = _Slots(model, min(batch_size, len(turns)), len(prefix) + len(bodies[0]))
            slots.fill_prefix(model, prefix, lean)
        states[rows] = _read(model, bodies, slots, 0, lean)[:, 0].float()
        if progress is not None:
            progress(len(rows))
    if slots is not None:
        slots.close(model)
    return states


@torch.no_grad()
def think(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    embed_token_id: int,
    max_new_tokens: int,
    stop_token_ids: Sequence[int] = (),
    batch_size: int = 32,
    distinct: bool = False,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    log_probabilities: bool = False,
    progress: Callable[[int], object] | None = None,
) -> list[Generation]:
    """Lets the model continue each prompt up to the embed token and returns the hidden state there.

    Args:
        model: A causal language model.
        prompts: Token ids, one non-empty list per row.
        embed_token_id: The token that closes a row; its hidden state is the result.
        max_new_tokens: Most tokens a row may write before the embed token; it is appended then.
        stop_token_ids: Tokens that end a turn without the embed token (end of turn, end of text); the embed token
            takes their place.
        batch_size: Number of rows computed at once.
        distinct: Whether a row writes each token at most once, for reasoning that is a list of terms.
        temperature: 0 takes the likeliest token; above 0 samples from the softmax of the logits divided by it.
        generator: Random source for sampling.
        log_probabilities: Whether to return the chosen tokens with their log-probabilities: after barring, and divided
            by the temperature unless it is 0.
        progress: Called with the number of rows done since the last call.

    Returns:
        One result per prompt, in order. Greedy results do not depend on the batch, up to rounding.
    """
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    if not order:
        return []
    prefix = _shared_prefix(prompts)
    head = lm_head(model)
    before_decoder, decoder = _split_head(model)
    rough = rough_head(decoder) if temperature == 0 and not log_probabilities else None
    stops = torch.tensor(sorted(set(stop_token_ids) - {embed_token_id}), dtype=torch.long, device=model.device)
    # The budget, the embed token, and one place behind it, which is read ahead for nothing.
    slots = _Slots(model, min(batch_size, len(prompts)), len(prompts[order[0]]) + max_new_tokens + 2)
    lean = bert_forward.fits(model)
    slots.fill_prefix(model, prefix, lean)
    batch = _Rows(slots, max_new_tokens, model.device, log_probabilities)
    results: dict[int, Generation] = {}

    def choose(hidden: Tensor, first: int) -> None:
        """Picks the next token of the rows from ``first`` on, given their hidden states."""
        barred = batch.written_before(first) if distinct else None
        if rough is not None:
            batch.choose(rough.likeliest(decoder, before_decoder(hidden), barred), first, embed_token_id, stops)
            return
        logits = head(hidden).float()
        if barred is not None:
            bar(logits, barred)
        if temperature > 0:
            logits = logits / temperature
            chosen = torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator).squeeze(1)
        else:
            chosen = logits.argmax(dim=-1)
        if log_probabilities:
            batch.note(chosen, logits.log_softmax(dim=-1).gather(1, chosen[:, None]).squeeze(1), first)
        batch.choose(chosen, first, embed_token_id, stops)

    def leave(states: Tensor, first: int) -> Tensor | None:
        """Takes out the rows from ``first`` on that end, given their states at the embed token.

        Returns:
            The former slots of the rows that stay; None if all do.
        """
        leaving = batch.leaving(embed_token_id, first)
        if not leaving:
            return None
        for place in leaving:
            row, ids, finished = batch.result(place)
            results[row] = Generation(ids, finished, states[place - first].float(), *batch.noted(place))
        if progress is not None:
            progress(len(leaving))
        return batch.drop(leaving)

    waiting = 0
    while waiting < len(order) or batch.count:
        free = slots.rows - batch.count
        if waiting < len(order) and (batch.count == 0 or free >= _ADMIT_SHARE * slots.rows):
            entering = order[waiting : waiting + free]
            # Rows with equal prompts, as the samples of one question, are read once.
            alike: dict[tuple[int, ...], list[int]] = {}
            for row in entering:
                alike.setdefault(tuple(prompts[row]), []).append(row)
            groups = list(alike.values())
            ahead = [embed_token_id] if batch.count + len(entering) <= _FEW_ROWS else []
            for chunk in _chunks(list(alike), free, tokens_per_forward(model)):
                rows = [groups[i][0] for i in chunk]
                copies = [(place, row) for place, i in enumerate(chunk) for row in groups[i][1:]]
                bodies = [prompts[row][len(prefix) :] for row in rows]
                rows += [row for _, row in copies]
                first = batch.enter(rows, [len(prompts[row]) for row in rows])
                states = _read(model, bodies, slots, first, lean, ahead)
                if copies:
                    source = torch.tensor([place for place, _ in copies], device=states.device)
                    slots.move(first + source, torch.arange(first + len(bodies), batch.count, device=states.device))
                    states = torch.cat([states, states[source]])
                choose(states[:, 0], first)
                if ahead:
                    leave(states[:, 1], first)
            waiting += len(entering)
            if not batch.count:
                continue
        ahead = [embed_token_id] if batch.count <= _FEW_ROWS else []
        states = _step(model, batch, slots, lean, ahead)
        kept = leave(states[:, 0], 0)
        states = states if kept is None else states[kept]
        if batch.count:
            choose(states[:, 0], 0)
            if ahead:
                leave(states[:, 1], 0)
    slots.close(model)
    return [results[row] for row in range(len(prompts))]


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, seen as (slots, heads, places, head size), written in place.

    Where the next ``update`` writes is set by ``_Slots`` before each forward pass.
    """

    is_sliding = False

    def __init__(self, slots: _Slots) -> None:
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # A place has all its heads side by side, so that what a row does not reach is in pages of its own.
        places = (self.slots.rows, self.slots.places, key_states.shape[1])
        self.keys = self.slots.memory.room((*places, key_states.shape[-1]), key_states).transpose(1, 2)
        self.values = self.slots.memory.room((*places, value_states.shape[-1]), value_states).transpose(1, 2)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
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
        return self.slots.end, 0

    def get_seq_length(self) -> int:
        return self.slots.end - self.slots.written

    def get_max_length(self) -> int:
        return self.slots.places


class _Slots(Cache):
    """A cache of ``rows`` slots with ``places`` tokens each, for all layers of a model."""

    def __init__(self, model: PreTrainedModel, rows: int, places: int) -> None:
        self.rows, self.places, self.prefix_length = rows, places, 0
        self.memory = CacheMemory.take(model)
        self.target_rows = slice(0, rows)
        self.target_places: slice | tuple[Tensor, Tensor] = slice(0, 0)
        self.end = self.written = 0
        super().__init__(layers=[_SlotLayer(self) for _ in range(model.config.num_hidden_layers)])

    def aim(self, rows: slice, places: slice | tuple[Tensor, Tensor], end: int, written: int) -> None:
        """Sets where the next forward pass writes and how far it may look back."""
        self.target_rows, self.target_places, self.end, self.written = rows, places, end, written

    def fill_prefix(self, model: PreTrainedModel, prefix: Sequence[int], lean: bool) -> None:
        """Computes the shared beginning once and puts it into every slot, where it stays."""
        if not prefix:
            return
        length = len(prefix)
        self.aim(slice(0, 1), slice(0, length), length, length)
        ids = torch.tensor([list(prefix)], device=model.device)
        _forward(model, ids, None, None, self, lean, ids.new_empty(1, 0))
        for stored in self.tensors():
            stored[1:, :, :length] = stored[:1, :, :length]
        self.prefix_length = length

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copies whole slots over others; the shared beginning is the same everywhere and stays."""
        begin, end = self.prefix_length, self.end
        for stored in self.tensors():
            stored[target, :, begin:end] = stored[source, :, begin:end]

    def close(self, model: PreTrainedModel) -> None:
        """Gives the memory back; nothing may be written or read from then on.

        Layers and slots refer to one another, so without this they, and what they hold, would stay
        until the garbage collector runs.
        """
        self.layers = []
        self.memory.give_back(model)

    def tensors(self) -> list[Tensor]:
        """Keys and values of all layers that were written to, each (slots, heads, places, head size)."""
        layers = [layer for layer in self.layers if isinstance(layer, _SlotLayer)]
        return [stored for layer in layers for stored in (layer.keys, layer.values) if stored is not None]


class _Rows:
    """The rows now being computed: they fill the first ``count`` slots without a gap."""

    def __init__(self, slots: _Slots, budget: int, device: torch.device, noting: bool) -> None:
        self.slots, self.budget, self.count = slots, budget, 0
        self.names: list[int] = []
        self.tokens = torch.zeros(slots.rows, dtype=torch.long, device=device)
        self.lengths = torch.zeros_like(self.tokens)
        self.wrote = torch.zeros_like(self.tokens)
        self.finished = torch.zeros(slots.rows, dtype=torch.bool, device=device)
        self.written = torch.zeros(slots.rows, budget + 1, dtype=torch.long, device=device)
        # What ends a row may differ from what was chosen, so choices are noted apart.
        kinds = (torch.long, torch.float32) if noting else ()
        self.notes = [torch.zeros_like(self.written, dtype=kind) for kind in kinds]
        self.longest = 0

    def enter(self, names: Sequence[int], lengths: Sequence[int]) -> int:
        """Adds rows behind those that are there; returns the first slot they take."""
        first, self.count = self.count, self.count + len(names)
        self.names += names
        self.lengths[first : self.count] = torch.tensor(lengths, device=self.lengths.device)
        self.wrote[first : self.count] = 0
        self.longest = max(self.longest, *lengths)
        return first

    def choose(self, chosen: Tensor, first: int, embed_token_id: int, stops: Tensor) -> None:
        """Sets the next token of the rows from ``first`` on; rows that must end get the embed token."""
        part = slice(first, self.count)
        finished = chosen == embed_token_id
        ended = finished | (self.wrote[part] >= self.budget)
        if len(stops):
            ended |= torch.isin(chosen, stops)
        tokens = torch.where(ended, embed_token_id, chosen)
        places = torch.arange(first, self.count, device=tokens.device)
        self.written[places, self.wrote[part]] = tokens
        self.tokens[part] = tokens
        self.finished[part] = finished
        self.wrote[part] += 1

    def note(self, chosen: Tensor, log_probabilities: Tensor, first: int) -> None:
        """Keeps what the rows from ``first`` on are about to choose."""
        places = torch.arange(first, self.count, device=chosen.device)
        for notes, values in zip(self.notes, (chosen, log_probabilities), strict=True):
            notes[places, self.wrote[first : self.count]] = values

    def noted(self, place: int) -> list[Any]:
        """The choices of a row that ended and their log-probabilities; nothing where none are kept."""
        return [notes[place, : int(self.wrote[place])].tolist() for notes in self.notes]

    def written_before(self, first: int) -> Tensor:
        """What the rows from ``first`` on have written, int64 of shape (rows, budget + 1), -1 where nothing is."""
        part = slice(first, self.count)
        # What lies beyond a row's end is left from another row.
        places = torch.arange(self.written.shape[1], device=self.written.device)
        return torch.where(places < self.wrote[part, None], self.written[part], -1)

    def leaving(self, embed_token_id: int, first: int) -> list[int]:
        """Slots, from ``first`` on, of the rows that were told to end with the embed token."""
        ended = self.tokens[first : self.count] == embed_token_id
        return (first + ended.nonzero().squeeze(1)).tolist()

    def result(self, place: int) -> tuple[int, list[int], bool]:
        """Name of a row that ended, what it wrote without the embed token, and whether it ended by itself."""
        ids = self.written[place, : int(self.wrote[place]) - 1].tolist()
        return self.names[place], ids, bool(self.finished[place])

    def drop(self, leaving: Sequence[int]) -> Tensor:
        """Removes rows and moves the last ones into the gaps; returns the former slot of each row that stays."""
        gone = set(leaving)
        self.count -= len(leaving)
        stay = list(range(self.count))
        movers = [place for place in range(self.count, self.count + len(leaving)) if place not in gone]
        gaps = [place for place in leaving if place < self.count]
        for gap, mover in zip(gaps, movers, strict=True):
            stay[gap] = mover
            self.names[gap] = self.names[mover]
        del self.names[self.count :]
        kept = torch.tensor(stay, dtype=torch.long, device=self.tokens.device)
        if gaps:
            source = torch.tensor(movers, device=self.tokens.device)
            target = torch.tensor(gaps, device=self.tokens.device)
            for state in (self.tokens, self.lengths, self.wrote, self.finished, self.written, *self.notes):
                state[target] = state[source]
            self.slots.move(source, target)
        self.longest = int(self.lengths[: self.count].max()) if self.count else 0
        return kept


def _read(
    model: PreTrainedModel,
    bodies: Sequence[Sequence[int]],
    slots: _Slots | None,
    first_slot: int,
    lean: bool,
    ahead: Sequence[int] = (),
) -> Tensor:
    """Reads several rows at once, and behind each of them the tokens ``ahead``, for which no place is taken.

    Rows are padded on the right, where a causal model never looks, so without a prefix no mask is needed.

    Returns:
        The hidden state at the last token of each row and at those ahead, (rows, 1 + ahead, hidden size).
    """
    longest = max(map(len, bodies)) + len(ahead)
    padded = [[*body, *ahead, *[0] * (longest - len(body) - len(ahead))] for body in bodies]
    ids = torch.tensor(padded, device=model.device)
    last = torch.tensor([range(len(body) - 1, len(body) + len(ahead)) for body in bodies], device=model.device)
    mask = positions = None
    if slots is not None:
        begin, end = slots.prefix_length, slots.prefix_length + longest
        slots.aim(slice(first_slot, first_slot + len(bodies)), slice(begin, end), end, longest)
        if begin:
            places = torch.arange(end, device=model.device)
            mask = _additive(places[None, :] <= places[begin:, None], slots)[None, None]
            mask = mask.expand(len(bodies), -1, -1, -1)
            positions = places[begin:].expand(len(bodies), -1)
    lengths = last[:, -1:] + 1
    padding = 1 - sum(map(len, bodies), len(ahead) * len(bodies)) / ids.numel()
    real = torch.arange(longest, device=model.device) < lengths if lean and padding > _LEAST_PADDING else None
    return _forward(model, ids, mask, positions, slots, lean, last, real)


def _step(model: PreTrainedModel, batch: _Rows, slots: _Slots, lean: bool, ahead: Sequence[int]) -> Tensor:
    """Feeds the next token of every row, and behind it those ``ahead``, whose places the next step writes again.

    Returns:
        The hidden states at them, (rows, 1 + ahead, hidden size).
    """
    count = batch.count
    behind = batch.tokens.new_tensor(ahead).expand(count, -1)
    ids = torch.cat([batch.tokens[:count, None], behind], dim=1)
    at = batch.lengths[:count, None] + torch.arange(ids.shape[1], device=ids.device)
    end = batch.longest + ids.shape[1]
    rows = torch.arange(count, device=ids.device)[:, None]
    slots.aim(slice(0, count), (rows, at), end, ids.shape[1])
    mask = _additive(torch.arange(end, device=ids.device) <= at[:, :, None], slots)[:, None]
    # Nothing follows the embed token, so what is read ahead of it may lie beyond the last position there is.
    positions = torch.where(ids[:, :1] == behind[:, :1], at[:, :1], at) if len(ahead) else at
    hidden = _forward(model, ids, mask, positions, slots, lean)
    batch.lengths[:count] += 1
    batch.longest += 1
    return hidden


def _forward(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor | None,
    positions: Tensor | None,
    slots: _Slots | None,
    lean: bool,
    wanted: Tensor | None = None,
    real: Tensor | None = None,
) -> Tensor:
    """Hidden states after the final norm at the places wanted (None: all), (rows, places, hidden size).

    ``lean`` says that the model fits ``bert_decoder``, which may be told which tokens are no padding.
    """
    if lean:
        return bert_forward.states(model, ids, mask, positions, slots, wanted, real)
    output = model.base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=slots, use_cache=slots is not None
    )
    hidden = output.last_hidden_state
    return hidden if wanted is None else hidden[torch.arange(len(ids), device=ids.device)[:, None], wanted]


def _additive(allowed: Tensor, slots: _Slots) -> Tensor:
    """A mask to add to attention scores: 0 where allowed, the lowest number elsewhere."""
    tensors = slots.tensors()
    dtype = tensors[0].dtype if tensors else torch.float32
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


def lm_head(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The module that turns a hidden state into logits: ``lm_head``, or BERT's ``cls`` with its transform."""
    for name in ("lm_head", "cls"):
        head = getattr(model, name, None)
        if head is not None:
            return head
    raise ValueError(f"{type(model).__name__} has no language-modelling head (lm_head or cls), so it can't reason.")


def _split_head(model: PreTrainedModel) -> tuple[Callable[[Tensor], Tensor], Any]:
    """The head as what it does before its last layer, and that layer."""
    head: Any = lm_head(model)
    predictions = getattr(head, "predictions", None)
    return (predictions.transform, predictions.decoder) if predictions is not None else (lambda states: states, head)


def tokens_per_forward(model: PreTrainedModel) -> int:
    """Padded tokens of one forward pass that the model's device is fast with."""
    return _TOKENS_PER_THREAD * torch.get_num_threads() if model.device.type == "cpu" else _TOKENS_ELSEWHERE


def _chunks(turns: Sequence[Sequence[int]], most_rows: int, most_tokens: int) -> list[list[int]]:
    """Row numbers, longest first, cut into passes of at most ``most_rows`` rows and ``most_tokens`` padded tokens.

    A pass that is large enough ends where the rows become much shorter, so that little padding is computed.
    """
    order = sorted(range(len(turns)), key=lambda row: -len(turns[row]))
    chunks: list[list[int]] = []
    for row in order:
        if chunks:
            rows = len(chunks[-1])
            longest = len(turns[chunks[-1][0]])
            enough = rows * longest >= _LEAST_SHARE * most_tokens and len(turns[row]) < _MUCH_SHORTER * longest
            if rows < most_rows and (rows + 1) * longest <= most_tokens and not enough:
                chunks[-1].append(row)
                continue
        chunks.append([row])
    return chunks


def _shared_prefix(turns: Sequence[Sequence[int]]) -> list[int]:
    """What all turns begin with, at least one token short of the shortest; empty if not worth keeping."""
    if len(turns) < 2:
        return []
    # All turns share what the first and the last in lexicographic order share.
    low, high = min(map(list, turns)), max(map(list, turns))
    length = 0
    most = min(map(len, turns)) - 1
    while length < most and low[length] == high[length]:
        length += 1
    return list(low[:length]) if length >= _LEAST_SHARED_PREFIX else []
