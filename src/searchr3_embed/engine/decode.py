"""The loop that writes tokens: rows enter the batch, choose token after token, and leave with their embedding.

It is one pass. The token that closes a row is read once more and its last hidden state is the embedding, so no second
forward pass over the whole sequence is needed. A row that ends leaves at once, and a waiting row takes its slot. The
loop does not know how a prompt is read: a thinker does that (see ``forward``). It neither normalises nor truncates
embeddings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from searchr3_embed.engine.batching import chunks, tokens_per_forward
from searchr3_embed.engine.forward import CausalThinker, Thinker
from searchr3_embed.engine.head import TokenChooser
from searchr3_embed.engine.interpreter_exit import stopping_place
from searchr3_embed.engine.rows import Batch, RowEnd

# Up to so many rows, each also reads the embed token behind its next token, in case the row then ends: that costs
# little and saves a step.
_FEW_ROWS = 8
# Waiting rows enter when this share of the slots is free: one pass that reads several prompts costs less than several.
_ADMIT_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Generation:
    """What the model wrote for one prompt, and where that left it.

    Attributes:
        ids: The token ids before the embed token: those that were given, then the generated ones.
        finished: True if the model wrote the embed token itself; False if it was appended because the budget was
            used up or the model ended its turn without it.
        state: Last hidden state (after the final norm) at the embed token, shape (hidden size,), float32.
        chosen: Every token that the model chose, on request: ``ids`` and the one that ended the row, be it the embed
            token, a stop token, or what the budget left no room for.
        log_probabilities: Of each chosen token, in the distribution that it was chosen from.
        given: How many of ``ids`` were given to the model.
        read_only: Whether all of them were, and the model was asked for nothing more.
    """

    ids: list[int]
    finished: bool
    state: Tensor
    chosen: list[int] = dataclasses.field(default_factory=list)
    log_probabilities: list[float] = dataclasses.field(default_factory=list)
    given: int = 0
    read_only: bool = False


@torch.no_grad()
def think(
    model: PreTrainedModel | Thinker,
    prompts: Sequence[Sequence[int]],
    *,
    embed_token_id: int,
    max_new_tokens: int | Sequence[int],
    stop_token_ids: Sequence[int] = (),
    batch_size: int = 32,
    distinct: bool = False,
    given: Sequence[Sequence[int]] | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    log_probabilities: bool = False,
    progress: Callable[[int], object] | None = None,
    on_token: Callable[[int, int], object] | None = None,
) -> list[Generation]:
    """Lets the model continue each prompt up to the embed token and returns the hidden state there.

    Args:
        model: A causal language model, or another thinker.
        prompts: Token ids, one non-empty list per row.
        embed_token_id: The token that closes a row; its hidden state is the result.
        max_new_tokens: Most tokens that a row writes before the embed token is appended; one number, or one for each.
        stop_token_ids: Tokens that end a turn without the embed token (end of turn, end of text); the embed token
            takes their place.
        batch_size: Number of rows computed at once.
        distinct: Whether a row writes each token at most once, for reasoning that is a list of terms.
        given: Token ids for each prompt that count as written already: the model goes on behind them.
        temperature: 0 takes the likeliest token; above 0 samples from the softmax of the logits divided by it.
        generator: Random source for sampling.
        log_probabilities: Whether to return the chosen tokens with their log-probabilities: after barring, and divided
            by the temperature unless it is 0.
        progress: Called with the number of rows done since the last call.
        on_token: Called with a prompt's place and a token as soon as it is written there, the embed token left out.
            What it raises ends the call.

    Returns:
        One result per prompt, in order. Greedy results do not depend on the batch, up to rounding.
    """
    if not prompts:
        return []
    thinker = model if isinstance(model, Thinker) else CausalThinker(model)
    chooser = TokenChooser(
        thinker.head, temperature=temperature, generator=generator, log_probabilities=log_probabilities
    )
    stops = torch.tensor(sorted(set(stop_token_ids) - {embed_token_id}), dtype=torch.long, device=thinker.device)
    words = given if given is not None else [[]] * len(prompts)
    budgets = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    most = max(len(ids) + budget for ids, budget in zip(words, budgets, strict=True))
    # Behind a prompt: what a row holds, the embed token, and the place after it, which is read ahead for nothing.
    slots = thinker.open_slots(prompts, min(batch_size, len(prompts)), most + 2)
    batch = Batch(slots, RowEnd(embed_token_id, stops, most), log_probabilities)
    loop = _Loop(thinker, prompts, words, budgets, batch, chooser, distinct, progress, on_token)
    loop.run(sorted(range(len(prompts)), key=lambda row: -len(prompts[row]) - len(words[row])))
    slots.close()
    return [loop.results[row] for row in range(len(prompts))]


@torch.no_grad()
def read_given(
    model: PreTrainedModel | Thinker,
    prompts: Sequence[Sequence[int]],
    given: Sequence[Sequence[int]],
    *,
    embed_token_id: int,
    batch_size: int = 32,
    progress: Callable[[int], object] | None = None,
) -> list[Generation]:
    """Reads what was written elsewhere behind each prompt, and the embed token: one pass, and nothing is chosen.

    Args:
        model: A causal language model, or another thinker.
        prompts: Token ids, one non-empty list per row.
        given: Token ids for each prompt, which may be none.
        embed_token_id: The token that closes a row; its hidden state is the result.
        batch_size: Most rows in one pass; passes are also cut by tokens.
        progress: Called with the number of rows done since the last call.

    Returns:
        One result per prompt, in order; each counts as closed by whoever wrote it.
    """
    if not prompts:
        return []
    thinker = model if isinstance(model, Thinker) else CausalThinker(model)
    slots = thinker.open_slots(prompts, min(batch_size, len(prompts)), max(map(len, given)) + 1)
    results: dict[int, Generation] = {}
    turns = [[*prompt, *ids] for prompt, ids in zip(prompts, given, strict=True)]
    for rows in chunks(turns, batch_size, tokens_per_forward(thinker.device)):
        words = [given[row] for row in rows]
        states = thinker.read([prompts[row] for row in rows], slots, 0, [embed_token_id], words)[:, 1].float()
        for row, ids, state in zip(rows, words, states, strict=True):
            results[row] = Generation(list(ids), True, state, given=len(ids), read_only=True)
        if progress is not None:
            progress(len(rows))
    slots.close()
    return [results[row] for row in range(len(prompts))]


def stop_token_ids(model: Any) -> list[int]:
    """Tokens that end the model's turn, as its generation settings say."""
    stops = getattr(model.generation_config, "eos_token_id", None)
    return [stops] if isinstance(stops, int) else list(stops or [])


@dataclasses.dataclass
class _Loop:
    """The state of one call of :func:`think`."""

    thinker: Thinker
    prompts: Sequence[Sequence[int]]
    given: Sequence[Sequence[int]]
    budgets: Sequence[int]
    batch: Batch
    chooser: TokenChooser
    distinct: bool
    progress: Callable[[int], object] | None
    on_token: Callable[[int, int], object] | None
    results: dict[int, Generation] = dataclasses.field(default_factory=dict)

    def run(self, waiting: Sequence[int]) -> None:
        """Lets rows enter as slots become free, until all have ended."""
        batch, slots = self.batch, self.batch.slots
        while waiting or batch.count:
            stopping_place()
            free = slots.rows - batch.count
            if waiting and (batch.count == 0 or free >= _ADMIT_SHARE * slots.rows):
                self.admit(waiting[:free])
                waiting = waiting[free:]
            if batch.count:
                self.step()

    def admit(self, entering: Sequence[int]) -> None:
        """Reads the prompts of rows that enter, and chooses their first tokens.

        Rows with equal prompts, as the samples of one question, are read once.
        """
        alike: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for row in entering:
            alike.setdefault((tuple(self.prompts[row]), tuple(self.given[row])), []).append(row)
        groups = list(alike.values())
        ahead = self._ahead(self.batch.count + len(entering))
        turns = [prompt + ids for prompt, ids in alike]
        for chunk in chunks(turns, len(entering), tokens_per_forward(self.thinker.device)):
            self._read([groups[i] for i in chunk], ahead)

    def step(self) -> None:
        """Reads the next token of every row; those that end leave, the others choose another."""
        ahead = self._ahead(self.batch.count)
        states = self.thinker.step(self.batch, ahead)
        self.batch.advance()
        kept = self._leave(states[:, 0], 0)
        states = states if kept is None else states[kept]
        if self.batch.count:
            self._choose(states[:, 0], 0)
            if ahead:
                self._leave(states[:, 1], 0)

    def _ahead(self, rows: int) -> list[int]:
        """What each row reads behind its next token before it is known to come, if there are ``rows`` rows."""
        return [self.batch.end.embed_token_id] if rows <= _FEW_ROWS else []

    def _read(self, groups: Sequence[Sequence[int]], ahead: Sequence[int]) -> None:
        """Reads one prompt of each group of rows whose prompts are equal, and puts all the rows into the batch."""
        rows = [group[0] for group in groups]
        copies = [(place, row) for place, group in enumerate(groups) for row in group[1:]]
        prompts = [self.prompts[row] for row in rows]
        given = [self.given[row] for row in rows]
        rows += [row for _, row in copies]
        first = self.batch.enter(
            rows,
            [len(self.prompts[row]) for row in rows],
            [self.given[row] for row in rows],
            [self.budgets[row] for row in rows],
        )
        words = {"given": given} if any(map(len, given)) else {}
        states = self.thinker.read(prompts, self.batch.slots, first, ahead, **words)
        if copies:
            source = torch.tensor([place for place, _ in copies], device=states.device)
            target = torch.arange(first + len(prompts), self.batch.count, device=states.device)
            self.batch.slots.move(first + source, target)
            states = torch.cat([states, states[source]])
        kept = self._leave_alone(rows, first)
        if kept is not None:
            if self.batch.count == first:
                return
            states = states[kept[first:] - first]
        self._choose(states[:, 0], first)
        if ahead:
            self._leave(states[:, 1], first)

    def _leave_alone(self, rows: Sequence[int], first: int) -> Tensor | None:
        """Removes the rows that the thinker left alone when it read them; see :meth:`_leave`."""
        alone = self.thinker.left_alone
        left = [n for n, row in enumerate(rows) if not self.given[row] and tuple(self.prompts[row]) in alone]
        if not left:
            return None
        for number in left:
            self.results[rows[number]] = Generation([], True, torch.zeros(self.thinker.hidden_size))
        if self.progress is not None:
            self.progress(len(left))
        return self.batch.drop([first + number for number in left])

    def _choose(self, states: Tensor, first: int) -> None:
        """Chooses the next token of each row from slot ``first`` on, given their hidden states."""
        barred = self.batch.written_before(first) if self.distinct else None
        chosen, log_probabilities = self.chooser.choose(states, barred)
        self.batch.choose(chosen, first, log_probabilities)
        if self.on_token is not None:
            for row, token in self.batch.just_written(first):
                self.on_token(row, token)

    def _leave(self, states: Tensor, first: int) -> Tensor | None:
        """Removes the rows whose token is the embed token, and keeps their results.

        Args:
            states: Hidden states at the embed token, for each row from ``first`` on.
            first: The first slot to look at.

        Returns:
            The former slots of the rows that stay; None if all stay.
        """
        leaving = self.batch.leaving(first)
        if not leaving:
            return None
        for place in leaving:
            row, ids, finished = self.batch.result(place)
            state = states[place - first].float()
            chosen, likely = self.batch.noted(place) or ([], [])
            self.results[row] = Generation(ids, finished, state, chosen, likely, given=len(self.given[row]))
        if self.progress is not None:
            self.progress(len(leaving))
        return self.batch.drop(leaving)
