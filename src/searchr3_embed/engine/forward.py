"""Reading, without choosing a token: turns become hidden states, prompts fill slots, rows get a token further.

``Thinker`` is what the loop in ``decode`` asks of a model; ``CausalThinker`` is how a causal language model does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from searchr3_embed.engine.batching import chunks, shared_prefix, tokens_per_forward
from searchr3_embed.engine.cpu import bert_forward
from searchr3_embed.engine.head import lm_head
from searchr3_embed.engine.interpreter_exit import stopping_place
from searchr3_embed.engine.rows import Batch
from searchr3_embed.engine.slots import Slots

# A pass of which more than this is padding leaves it out where it can.
_LEAST_PADDING = 0.05


@runtime_checkable
class Thinker(Protocol):
    """A model as the loop that writes sees it.

    How a prompt is read, and with which weights, is the thinker's own affair.
    """

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """Turns hidden states, shape (rows, hidden size), into logits, shape (rows, vocabulary)."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def hidden_size(self) -> int:
        """Numbers of a state."""

    @property
    def left_alone(self) -> Set[tuple[int, ...]]:
        """Of the prompts that were read, those for which nothing is to be written: their states are zeros."""

    def open_slots(self, prompts: Sequence[Sequence[int]], rows: int, further: int) -> Slots:
        """Slots for ``rows`` rows at a time, with places for each prompt and ``further`` tokens behind it.

        What is the same for all prompts may be computed here and stand in every slot (``Slots.prefix_length``).
        """

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        slots: Slots,
        first_slot: int,
        ahead: Sequence[int],
        given: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Reads prompts into the slots from ``first_slot`` on, and behind each the tokens ``ahead``.

        The next token of a row will stand where the first token ahead was read; no prompt sees what is ahead of it.
        Where tokens are ``given``, one list for each prompt, they stand behind it as if the model had written them.

        Returns:
            The hidden states that choose the next token and those at the tokens ahead, (prompts, 1 + ahead, hidden
            size).
        """

    def step(self, batch: Batch, ahead: Sequence[int]) -> Tensor:
        """Reads the next token of every row, and behind it those ``ahead``, whose places the next step writes again.

        Returns:
            The hidden states at them, (rows, 1 + ahead, hidden size).
        """


class CausalThinker:
    """A causal language model: a prompt is read like anything else, and what prompts share is read once.

    Args:
        model: The model, with its head if it is to write.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        # Whether the fast pass computes what the model's own would.
        self.lean = bert_forward.fits(model)
        self.left_alone: set[tuple[int, ...]] = set()

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """See :class:`Thinker`."""
        return lm_head(self.model)

    @property
    def device(self) -> torch.device:
        """See :class:`Thinker`."""
        return self.model.device

    @property
    def hidden_size(self) -> int:
        """See :class:`Thinker`."""
        return int(self.model.config.hidden_size)

    def open_slots(self, prompts: Sequence[Sequence[int]], rows: int, further: int) -> Slots:
        """See :class:`Thinker`."""
        return self.slots_behind(shared_prefix(prompts), rows, max(map(len, prompts)) + further)

    def slots_behind(self, prefix: Sequence[int], rows: int, places: int) -> Slots:
        """Slots that all begin with ``prefix``, which is computed once; it may be empty."""
        slots = Slots(self.model, rows, places)
        if prefix:
            length = len(prefix)
            slots.aim(slice(0, 1), slice(0, length), length, length)
            ids = torch.tensor([list(prefix)], device=self.device)
            last_hidden_states(self.model, ids, None, None, slots, self.lean, ids.new_empty(1, 0))
            slots.share(length)
        return slots

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        slots: Slots | None = None,
        first_slot: int = 0,
        ahead: Sequence[int] = (),
        given: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """See :class:`Thinker`; without slots, keys and values are not kept.

        Rows are padded on the right, where a causal model never looks, so no mask is needed unless the slots begin
        with a prefix.
        """
        begin = 0 if slots is None else slots.prefix_length
        if given is not None:  # to a causal model, a prompt and what was written behind it are one text
            prompts = [[*prompt, *ids] for prompt, ids in zip(prompts, given, strict=True)]
        rows = [torch.tensor([*prompt[begin:], *ahead]) for prompt in prompts]
        ids = pad_sequence(rows, batch_first=True).to(self.device)
        longest = ids.shape[1]
        last = torch.tensor([range(len(row) - len(ahead) - 1, len(row)) for row in rows], device=self.device)
        mask = positions = None
        if slots is not None:
            end = begin + longest
            slots.aim(slice(first_slot, first_slot + len(rows)), slice(begin, end), end, longest)
            if begin:
                places = torch.arange(end, device=self.device)
                mask = slots.additive_mask(places[None, :] <= places[begin:, None])[None, None]
                mask = mask.expand(len(rows), -1, -1, -1)
                positions = places[begin:].expand(len(rows), -1)
        padding = 1 - sum(map(len, rows)) / ids.numel()
        real = None
        if self.lean and padding > _LEAST_PADDING:
            real = torch.arange(longest, device=self.device) < last[:, -1:] + 1
        return last_hidden_states(self.model, ids, mask, positions, slots, self.lean, last, real)

    def step(self, batch: Batch, ahead: Sequence[int]) -> Tensor:
        """See :class:`Thinker`."""
        ids, mask, positions = next_tokens(batch, ahead)
        return last_hidden_states(self.model, ids, mask, positions, batch.slots, self.lean)


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
    thinker = CausalThinker(model)
    prefix = shared_prefix(turns)
    slots = None
    if prefix:
        slots = thinker.slots_behind(prefix, min(batch_size, len(turns)), max(map(len, turns)))
    for rows in chunks(turns, batch_size, tokens_per_forward(model.device)):
        stopping_place()
        states[rows] = thinker.read([turns[row] for row in rows], slots)[:, 0].float()
        if progress is not None:
            progress(len(rows))
    if slots is not None:
        slots.close()
    return states


def next_tokens(batch: Batch, ahead: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Aims the slots at the next token of every row and at those ``ahead`` of it.

    Returns:
        Token ids, int64 of shape (rows, 1 + ahead); a mask by which each sees its row up to itself, to add to the
        attention scores, shape (rows, 1, 1 + ahead, places); and positions, int64 in the shape of the ids.
    """
    count = batch.count
    behind = batch.tokens.new_tensor(ahead).expand(count, -1)
    ids = torch.cat([batch.tokens[:count, None], behind], dim=1)
    at = batch.lengths[:count, None] + torch.arange(ids.shape[1], device=ids.device)
    end = batch.longest + ids.shape[1]
    rows = torch.arange(count, device=ids.device)[:, None]
    batch.slots.aim(slice(0, count), (rows, at), end, ids.shape[1])
    mask = batch.slots.additive_mask(torch.arange(end, device=ids.device) <= at[:, :, None])[:, None]
    # Nothing comes behind the embed token, and its place may be the last position that the model has.
    positions = torch.where(ids[:, :1] == behind[:, :1], at[:, :1], at) if len(ahead) else at
    return ids, mask, positions


def last_hidden_states(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor | None,
    positions: Tensor | None,
    slots: Slots | None,
    lean: bool,
    wanted: Tensor | None = None,
    real: Tensor | None = None,
) -> Tensor:
    """Hidden states after the final norm, by the model's own forward pass or by the fast one.

    Args:
        model: The model; its body is asked, not its head.
        ids: Token ids, int64 of shape (rows, tokens).
        mask: Added to the attention scores, shape (rows, 1, tokens, keys); None: each token sees its row up to itself,
            and there are no earlier keys.
        positions: Int64 of shape (rows, tokens); None counts from 0.
        slots: Store the keys and values, and return those that may be seen; None stores nothing.
        lean: Whether to use the fast pass, for a model that fits it.
        wanted: Which tokens of each row, int64 of shape (rows, any number); None: all.
        real: Which tokens are not padding, bool of shape (rows, tokens), for the fast pass; None: all are real.

    Returns:
        Shape (rows, wanted tokens, hidden size).
    """
    if lean:
        return bert_forward.states(model, ids, mask, positions, slots, wanted, real)
    output = model.base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=slots, use_cache=slots is not None
    )
    hidden = output.last_hidden_state
    return hidden if wanted is None else hidden[torch.arange(len(ids), device=ids.device)[:, None], wanted]
