"""Who is in the batch: rows enter behind those that are there, get their next tokens, and leave when they end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from searchr3_embed.engine.slots import Slots


@dataclasses.dataclass(frozen=True)
class RowEnd:
    """What ends a row.

    Attributes:
        embed_token_id: The token that closes a row; where anything else ends it, this token is put there.
        stop_token_ids: Tokens that end a turn without the embed token, int64 of shape (any number,).
        budget: Most tokens of a row before the embed token, those that were given to it included.
    """

    embed_token_id: int
    stop_token_ids: Tensor
    budget: int


class Batch:
    """The rows now being computed: they fill the first ``count`` slots without a gap.

    Args:
        slots: Where their keys and values are.
        end: What ends a row.
        noting: Whether choices and their log-probabilities are kept.
    """

    def __init__(self, slots: Slots, end: RowEnd, noting: bool) -> None:
        self.slots, self.end, self.count = slots, end, 0
        device = end.stop_token_ids.device
        self.names: list[int] = []
        self.tokens = torch.zeros(slots.rows, dtype=torch.long, device=device)
        self.lengths = torch.zeros_like(self.tokens)
        self.wrote = torch.zeros_like(self.tokens)
        # Of what a row wrote, how much was given to it; and how much it may have in all.
        self.began = torch.zeros_like(self.tokens)
        self.most = torch.zeros_like(self.tokens)
        self.finished = torch.zeros(slots.rows, dtype=torch.bool, device=device)
        self.written = torch.zeros(slots.rows, end.budget + 1, dtype=torch.long, device=device)
        # The embed token may take the place of what was chosen, so choices are kept apart.
        kinds = (torch.long, torch.float32) if noting else ()
        self.notes = [torch.zeros_like(self.written, dtype=kind) for kind in kinds]
        self.longest = 0

    def enter(
        self, names: Sequence[int], lengths: Sequence[int], given: Sequence[Sequence[int]], budgets: Sequence[int]
    ) -> int:
        """Adds rows behind those that are there; returns the first slot they take.

        Args:
            names: Numbers by which the caller knows the rows.
            lengths: Number of tokens of each prompt; what is given, and then the row's own tokens, stand behind it.
            given: Tokens that count as written already.
            budgets: Most tokens that each row writes behind them.
        """
        first, self.count = self.count, self.count + len(names)
        self.names += names
        device, part = self.lengths.device, slice(first, self.count)
        self.began[part] = self.wrote[part] = torch.tensor([len(ids) for ids in given], device=device)
        self.most[part] = self.began[part] + torch.tensor(list(budgets), device=device)
        read = [length + len(ids) for length, ids in zip(lengths, given, strict=True)]
        self.lengths[part] = torch.tensor(read, device=device)
        for place, ids in enumerate(given, start=first):
            if len(ids):
                self.written[place, : len(ids)] = torch.tensor(list(ids), device=device)
        self.longest = max(self.longest, *read)
        return first

    def choose(self, chosen: Tensor, first: int, log_probabilities: Tensor | None = None) -> None:
        """Sets the next token of the rows from ``first`` on; rows that must end get the embed token."""
        part = slice(first, self.count)
        places = torch.arange(first, self.count, device=chosen.device)
        if log_probabilities is not None:
            for notes, values in zip(self.notes, (chosen, log_probabilities), strict=True):
                notes[places, self.wrote[part]] = values
        finished = chosen == self.end.embed_token_id
        ended = finished | (self.wrote[part] >= self.most[part])
        if len(self.end.stop_token_ids):
            ended |= torch.isin(chosen, self.end.stop_token_ids)
        tokens = torch.where(ended, self.end.embed_token_id, chosen)
        self.written[places, self.wrote[part]] = tokens
        self.tokens[part] = tokens
        self.finished[part] = finished
        self.wrote[part] += 1

    def just_written(self, first: int) -> list[tuple[int, int]]:
        """Name and next token of each row from ``first`` on, but for those that end."""
        pairs = zip(self.names[first:], self.tokens[first : self.count].tolist(), strict=True)
        return [(name, token) for name, token in pairs if token != self.end.embed_token_id]

    def advance(self) -> None:
        """To be called when the next token of every row was read: the one after it stands one place further."""
        self.lengths[: self.count] += 1
        self.longest += 1

    def written_before(self, first: int) -> Tensor:
        """What the rows from ``first`` on have written, int64 of shape (rows, budget + 1), -1 where nothing is."""
        part = slice(first, self.count)
        # Beyond a row's end, there is still what another row wrote.
        places = torch.arange(self.written.shape[1], device=self.written.device)
        return torch.where(places < self.wrote[part, None], self.written[part], -1)

    def leaving(self, first: int) -> list[int]:
        """Slots, from ``first`` on, of the rows whose next token is the embed token."""
        ended = self.tokens[first : self.count] == self.end.embed_token_id
        return (first + ended.nonzero().squeeze(1)).tolist()

    def result(self, place: int) -> tuple[int, list[int], bool]:
        """Name of a row that ended, its tokens without the embed token, and whether it ended by itself."""
        ids = self.written[place, : int(self.wrote[place]) - 1].tolist()
        return self.names[place], ids, bool(self.finished[place])

    def noted(self, place: int) -> list[Any]:
        """The choices of a row that ended and their log-probabilities; nothing where none are kept."""
        written = slice(int(self.began[place]), int(self.wrote[place]))
        return [notes[place, written].tolist() for notes in self.notes]

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
            rows = (self.tokens, self.lengths, self.wrote, self.began, self.most, self.finished, self.written)
            for state in (*rows, *self.notes):
                state[target] = state[source]
            self.slots.move(source, target)
        self.longest = int(self.lengths[: self.count].max()) if self.count else 0
        return kept
