"""A thinker on top of an encoder's own pass: the encoder reads a question, and its keys and values are the prompt.

The encoder reads the question in both directions, as it always does, with its own weights: the mean of its last states
is the question's vector, and its keys and values are what the thinker looks back at. Written tokens run through the
same layers with the thinker's weights, causally. So thinking costs the written tokens and nothing else.

The keys of a question depend on all of it, so questions share no beginning, and padding is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from searchr3_embed.engine.cpu import bert_forward
from searchr3_embed.engine.encode import padding_mask
from searchr3_embed.engine.forward import CausalThinker, last_hidden_states
from searchr3_embed.engine.slots import Slots


class OnePassThinker(CausalThinker):
    """Reads all but the last token of a prompt with an encoder, and goes on from there with a thinker.

    The last token of a prompt is the thinker's first one: its state chooses the first word.

    Args:
        encoder: A BERT that reads in both directions.
        model: A causal language model with the encoder's layout, whose attention takes masks of four dimensions.
        foreign: Says for means of the encoder's last states, shape (rows, hidden size), about which rows nothing is to
            be written, bool of shape (rows,).

    Attributes:
        pooled: The mean of the encoder's last states, float32 of shape (hidden size,), by the tokens that it read.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        model: PreTrainedModel,
        foreign: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(model)
        self.encoder, self.foreign = encoder, foreign
        self.lean_encoder = bert_forward.fits_encoder(encoder)
        self.pooled: dict[tuple[int, ...], Tensor] = {}

    def open_slots(self, prompts: Sequence[Sequence[int]], rows: int, further: int) -> Slots:
        """See :class:`searchr3_embed.engine.forward.Thinker`."""
        return self.slots_behind((), rows, max(map(len, prompts)) + further)

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        slots: Slots | None = None,
        first_slot: int = 0,
        ahead: Sequence[int] = (),
        given: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """See :class:`searchr3_embed.engine.forward.Thinker`; slots are needed, for they carry the question over."""
        assert slots is not None
        rows = slice(first_slot, first_slot + len(prompts))
        texts = [torch.tensor(prompt[:-1]) for prompt in prompts]
        lengths = torch.tensor([len(text) for text in texts], device=self.device)
        ids = pad_sequence(texts, batch_first=True).to(self.device)
        longest = ids.shape[1]
        slots.aim(rows, slice(0, longest), longest, longest)
        real = torch.arange(longest, device=self.device) < lengths[:, None]
        mask = padding_mask(real, self.encoder.dtype)
        states = last_hidden_states(
            self.encoder, ids, mask, None, slots, self.lean_encoder, None, None if real.all() else real
        )
        means = (states.float() * real[:, :, None]).sum(dim=1) / lengths[:, None]
        self.pooled.update(zip((tuple(prompt[:-1]) for prompt in prompts), means, strict=True))
        if self.foreign is not None:
            alone = self.foreign(means)
            self.left_alone.update(tuple(prompts[row]) for row in alone.nonzero().flatten().tolist())
            if given is None and alone.all():
                return states.new_zeros(len(prompts), 1 + len(ahead), self.hidden_size)
        behind = [[prompt[-1], *ahead] for prompt in prompts]
        if given is not None:
            behind = [[prompt[-1], *ids, *ahead] for prompt, ids in zip(prompts, given, strict=True)]
        return self._go_on(behind, slots, rows, lengths, 1 + len(ahead))

    def _go_on(
        self, behind: Sequence[Sequence[int]], slots: Slots, rows: slice, lengths: Tensor, asked: int
    ) -> Tensor:
        """Reads with the thinker what stands behind each text; gives the states at the last ``asked`` tokens.

        Shorter rows are padded on the right, where no token looks; what is written later stands in these places.
        """
        counts = torch.tensor([len(tokens) for tokens in behind], device=self.device)
        ids = pad_sequence([torch.tensor(tokens) for tokens in behind], batch_first=True).to(self.device)
        steps = torch.arange(ids.shape[1], device=self.device)
        at = lengths[:, None] + steps
        end = int(lengths.max()) + ids.shape[1]
        numbers = torch.arange(rows.start, rows.stop, device=self.device)[:, None]
        slots.aim(rows, (numbers, at), end, ids.shape[1])
        mask = slots.additive_mask(torch.arange(end, device=self.device) <= at[:, :, None])[:, None]
        if ids.shape[1] == asked:
            return last_hidden_states(self.model, ids, mask, at, slots, self.lean)
        # Padding may stand beyond the last position that the model has.
        positions = torch.minimum(at, (lengths + counts - 1)[:, None])
        wanted = counts[:, None] - asked + steps[:asked]
        return last_hidden_states(self.model, ids, mask, positions, slots, self.lean, wanted)
