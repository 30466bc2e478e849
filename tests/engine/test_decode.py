"""The engine against plain forward passes: one pass equals two, and nothing depends on the batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.engine import decode
from searchr3_embed.engine import forward as forward_module
from searchr3_embed.engine.decode import Generation, think
from searchr3_embed.engine.forward import CausalThinker, embed
from searchr3_embed.engine.head import lm_head
from searchr3_embed.engine.rows import Batch
from searchr3_embed.engine.slots import Slots

BUDGET = 14


@pytest.fixture(scope="module", params=["mini_checkpoint", "qwen2_checkpoint"])
def embedder(request: pytest.FixtureRequest) -> ReasoningEmbedder:
    return ReasoningEmbedder(request.getfixturevalue(request.param), device="cpu")


def random_prompts(model: PreTrainedModel, shared: int, rows: int = 41) -> list[list[int]]:
    """Prompts of 2 to 40 tokens behind ``shared`` equal ones."""
    rng = random.Random(shared)
    beginning = [rng.randrange(10, 300) for _ in range(shared)]
    return [beginning + [rng.randrange(10, 300) for _ in range(rng.randrange(2, 40))] for _ in range(rows)]


def run(embedder: ReasoningEmbedder, prompts: list[list[int]], **options: object) -> list[Generation]:
    settings = {"embed_token_id": embedder.conversation.embed_token_id, "max_new_tokens": BUDGET, **options}
    return think(embedder.causal_lm, prompts, **settings)  # type: ignore[arg-type]


@torch.no_grad()
def forward(model: PreTrainedModel, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states and logits of one plain forward pass."""
    output = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    return output.hidden_states[-1][0], output.logits[0]


@pytest.mark.parametrize("shared", [0, 5, 30])
def test_one_pass_equals_a_teacher_forced_forward(embedder: ReasoningEmbedder, shared: int) -> None:
    model, token = embedder.causal_lm, embedder.conversation.embed_token_id
    prompts = random_prompts(model, shared)
    generations = run(embedder, prompts)
    if shared == 0:
        assert {g.finished for g in generations} == {True, False}, "the test needs rows of both kinds"
        assert len({len(g.ids) for g in generations}) > 1, "the test needs rows that end at different steps"
    for prompt, generation in zip(prompts, generations, strict=True):
        states, logits = forward(model, [*prompt, *generation.ids, token])
        torch.testing.assert_close(generation.state, states[-1], atol=1e-4, rtol=1e-4)
        likeliest = logits.argmax(-1)[len(prompt) - 1 : -1].tolist()
        assert likeliest[: len(generation.ids)] == generation.ids
        assert (likeliest[-1] == token) == generation.finished


@pytest.mark.parametrize("shared", [0, 30])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_results_do_not_depend_on_batch_or_order(embedder: ReasoningEmbedder, shared: int, batch_size: int) -> None:
    prompts = random_prompts(embedder.causal_lm, shared)
    expected = run(embedder, prompts, batch_size=len(prompts))
    order = random.Random(batch_size).sample(range(len(prompts)), len(prompts))
    shuffled = run(embedder, [prompts[i] for i in order], batch_size=batch_size)
    for i, generation in zip(order, shuffled, strict=True):
        assert generation.ids == expected[i].ids
        torch.testing.assert_close(generation.state, expected[i].state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [0, 30])
def test_direct_turns_equal_single_forwards(embedder: ReasoningEmbedder, shared: int) -> None:
    turns = random_prompts(embedder.causal_lm, shared)
    states = embed(embedder.causal_lm, turns, batch_size=6)
    for turn, state in zip(turns, states, strict=True):
        torch.testing.assert_close(state, forward(embedder.causal_lm, turn)[0][-1], atol=1e-4, rtol=1e-4)


def test_equal_prompts_and_prompts_that_begin_others(embedder: ReasoningEmbedder) -> None:
    """The shared beginning may reach into a row, but never leaves it without a token of its own."""
    long = random_prompts(embedder.causal_lm, 30)[0]
    prompts = [long, long, long[:25], long[:20]]
    states = embed(embedder.causal_lm, prompts)
    for prompt, state in zip(prompts, states, strict=True):
        torch.testing.assert_close(state, forward(embedder.causal_lm, prompt)[0][-1], atol=1e-4, rtol=1e-4)


def test_shared_beginning_is_computed_once(embedder: ReasoningEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[int] = []
    plain = forward_module.last_hidden_states

    def counted(model: PreTrainedModel, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        tokens.append(ids.numel())
        return plain(model, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(forward_module, "last_hidden_states", counted)
    prompts = [list(range(10, 40)) + [50 + i] for i in range(20)]
    embed(embedder.causal_lm, prompts)
    assert sum(tokens) == 30 + 20


def test_budget_of_zero_embeds_at_once(embedder: ReasoningEmbedder) -> None:
    token = embedder.conversation.embed_token_id
    prompts = random_prompts(embedder.causal_lm, 0, rows=5)
    for prompt, generation in zip(prompts, run(embedder, prompts, max_new_tokens=0), strict=True):
        assert generation.ids == []
        expected = forward(embedder.causal_lm, [*prompt, token])[0][-1]
        torch.testing.assert_close(generation.state, expected, atol=1e-4, rtol=1e-4)


def test_stop_tokens_end_a_row_as_unfinished(embedder: ReasoningEmbedder) -> None:
    prompts = random_prompts(embedder.causal_lm, 0)
    free = run(embedder, prompts)
    row = max(range(len(free)), key=lambda i: len(free[i].ids))
    finished = [g.ids for g in free if g.finished]
    # A token of the longest row that not every row writes that ends by itself.
    stop = next(token for token in free[row].ids[2:] if any(token not in ids for ids in finished))
    stopped = run(embedder, prompts, stop_token_ids=[stop, embedder.conversation.embed_token_id])
    assert stopped[row].ids == free[row].ids[: free[row].ids.index(stop)] and not stopped[row].finished
    assert any(g.finished for g in stopped), "the embed token itself must still finish a row"


def test_finished_rows_leave_and_waiting_rows_enter(
    embedder: ReasoningEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are computed only while they write: far fewer row-steps than batches that wait for their slowest row."""
    row_steps: list[int] = []
    plain = CausalThinker.step

    def counted(thinker: CausalThinker, batch: Batch, *rest: Any) -> torch.Tensor:
        row_steps.append(batch.count)
        return plain(thinker, batch, *rest)

    monkeypatch.setattr(CausalThinker, "step", counted)
    monkeypatch.setattr(decode, "_FEW_ROWS", 0)
    generations = run(embedder, random_prompts(embedder.causal_lm, 0), batch_size=8)
    assert sum(row_steps) == sum(len(g.ids) + 1 for g in generations)
    assert max(row_steps) == 8
    # Few rows read the embed token ahead, so none takes a step of its own for it.
    row_steps.clear()
    monkeypatch.setattr(decode, "_FEW_ROWS", 8)
    again = run(embedder, random_prompts(embedder.causal_lm, 0), batch_size=8)
    assert [g.ids for g in again] == [g.ids for g in generations]
    assert sum(row_steps) == sum(len(g.ids) for g in generations)


@pytest.mark.parametrize("prefix", [0, 20])
def test_reading_ahead_changes_nothing(
    embedder: ReasoningEmbedder, monkeypatch: pytest.MonkeyPatch, prefix: int
) -> None:
    """Whether all, some or no steps read ahead, for rows that end by themselves and for those cut by the budget."""
    prompts = random_prompts(embedder.causal_lm, prefix, rows=18)
    prompts += prompts[:4]
    for budget in (0, 2, 30):
        monkeypatch.setattr(decode, "_FEW_ROWS", 0)
        expected = run(embedder, prompts, max_new_tokens=budget, batch_size=1, log_probabilities=True)
        for limit, size in ((0, 5), (0, 64), (3, 1), (3, 5), (3, 64), (100, 5), (100, 64)):
            monkeypatch.setattr(decode, "_FEW_ROWS", limit)
            found = run(embedder, prompts, max_new_tokens=budget, batch_size=size, log_probabilities=True)
            for one, other in zip(expected, found, strict=True):
                assert (one.ids, one.finished, one.chosen) == (other.ids, other.finished, other.chosen)
                torch.testing.assert_close(one.state, other.state, atol=1e-4, rtol=1e-4)


def test_reading_ahead_never_leaves_the_positions(
    embedder: ReasoningEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that fills the model to its last position: the place behind it does not exist."""
    limit = embedder.causal_lm.config.max_position_embeddings
    places: list[int] = []
    plain = forward_module.last_hidden_states

    def watched(model: PreTrainedModel, ids: torch.Tensor, mask: Any, positions: Any, *rest: Any) -> torch.Tensor:
        places.append(ids.shape[1] - 1 if positions is None else int(positions.max()))
        return plain(model, ids, mask, positions, *rest)

    monkeypatch.setattr(forward_module, "last_hidden_states", watched)
    prompts = [[5 + i % 7 for i in range(limit - 4)] for _ in range(decode._FEW_ROWS + 2)]
    for row, prompt in enumerate(prompts):
        prompt[-1] = 5 + row
    generations = run(embedder, prompts, max_new_tokens=3, batch_size=len(prompts))
    assert any(len(g.ids) == 3 for g in generations), "the test needs a row that uses its budget up"
    assert max(places) == limit - 1


def test_distinct_rows_never_repeat_a_token(embedder: ReasoningEmbedder) -> None:
    prompts = random_prompts(embedder.causal_lm, 0)
    free = run(embedder, prompts)
    assert any(len(set(g.ids)) < len(g.ids) for g in free), "the test needs rows that repeat themselves"
    token = embedder.conversation.embed_token_id
    expected = run(embedder, prompts, distinct=True, batch_size=1)
    for prompt, generation in zip(prompts, expected, strict=True):
        logits = forward(embedder.causal_lm, [*prompt, *generation.ids, token])[1][len(prompt) - 1 : -1]
        for place, row in enumerate(logits):
            row[generation.ids[:place]] = -torch.inf
        assert logits.argmax(-1).tolist()[: len(generation.ids)] == generation.ids
    # In a batch, rows come and go; what one wrote must never bar another.
    for batch_size in (5, 64):
        assert [g.ids for g in run(embedder, prompts, distinct=True, batch_size=batch_size)] == [
            g.ids for g in expected
        ]


def test_sampling_follows_its_generator(embedder: ReasoningEmbedder) -> None:
    prompts = random_prompts(embedder.causal_lm, 0, rows=8)

    def sample(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return [g.ids for g in run(embedder, prompts, temperature=1.0, generator=generator)]

    assert sample(1) == sample(1) != sample(2)


def test_progress_counts_every_row(embedder: ReasoningEmbedder) -> None:
    prompts = random_prompts(embedder.causal_lm, 0)
    done: list[int] = []
    run(embedder, prompts, progress=done.append)
    assert sum(done) == len(prompts)
    done.clear()
    embed(embedder.causal_lm, prompts, progress=done.append)
    assert sum(done) == len(prompts)


def test_no_prompts_no_work(embedder: ReasoningEmbedder) -> None:
    assert run(embedder, []) == []


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probabilities_are_those_of_a_teacher_forced_forward(
    embedder: ReasoningEmbedder, distinct: bool, temperature: float
) -> None:
    """Of every choice: the ones that ended a row, and the last one that no budget was left for, as well."""
    model, token = embedder.causal_lm, embedder.conversation.embed_token_id
    prompts = random_prompts(model, 5)
    stop = run(embedder, prompts)[0].ids[-1]
    options = {"distinct": distinct, "temperature": temperature, "stop_token_ids": [stop], "batch_size": 7}
    generations = run(embedder, prompts, log_probabilities=True, generator=torch.Generator().manual_seed(0), **options)
    ends = [g.chosen[-1] for g in generations]
    assert token in ends and {token, stop} < set(ends), "the test needs rows that end in every way"
    for prompt, generation in zip(prompts, generations, strict=True):
        assert generation.chosen[:-1] == generation.ids and generation.finished == (generation.chosen[-1] == token)
        logits = forward(model, [*prompt, *generation.chosen])[1][len(prompt) - 1 : -1] / (temperature or 1)
        for place in range(len(generation.chosen)):
            if distinct:
                logits[place, generation.chosen[:place]] = float("-inf")
        expected = logits.log_softmax(-1).gather(1, torch.tensor(generation.chosen)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(generation.log_probabilities), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [0, 30])
def test_equal_prompts_are_read_once(
    embedder: ReasoningEmbedder, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = random_prompts(embedder.causal_lm, shared, rows=6)
    expected = run(embedder, prompts)
    read: list[int] = []
    plain = CausalThinker.read

    def counted(thinker: CausalThinker, prompts: list[list[int]], *rest: Any) -> torch.Tensor:
        read.append(len(prompts))
        return plain(thinker, prompts, *rest)

    monkeypatch.setattr(CausalThinker, "read", counted)
    four = [prompt for prompt in prompts for _ in range(4)]
    for position, generation in enumerate(run(embedder, four, batch_size=24)):
        assert generation.ids == expected[position // 4].ids
        torch.testing.assert_close(generation.state, expected[position // 4].state, atol=1e-4, rtol=1e-4)
    assert sum(read) == 6
    generator = torch.Generator().manual_seed(0)
    samples = run(embedder, four, batch_size=10, temperature=1.0, generator=generator)
    assert len({tuple(generation.ids) for generation in samples[:4]}) > 1, "samples of one prompt differ"
    for prompt, generation in zip(four, samples, strict=True):
        states = forward(embedder.causal_lm, [*prompt, *generation.ids, embedder.conversation.embed_token_id])[0]
        torch.testing.assert_close(generation.state, states[-1], atol=1e-4, rtol=1e-4)


class BothWays(CausalThinker):
    """Reads a prompt in both directions: each of its tokens sees the whole prompt; what is written is causal."""

    def open_slots(self, prompts: Sequence[Sequence[int]], rows: int, further: int) -> Slots:
        return Slots(self.model, rows, max(map(len, prompts)) + further)

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        slots: Slots | None = None,
        first_slot: int = 0,
        ahead: Sequence[int] = (),
    ) -> torch.Tensor:
        assert slots is not None
        ids = pad_sequence([torch.tensor([*prompt, *ahead]) for prompt in prompts], batch_first=True)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        slots.aim(slice(first_slot, first_slot + len(prompts)), slice(0, ids.shape[1]), ids.shape[1], ids.shape[1])
        mask = slots.additive_mask(seen_both_ways(lengths, ids.shape[1]))[:, None]
        wanted = lengths[:, None] - 1 + torch.arange(1 + len(ahead))
        return forward_module.last_hidden_states(self.model, ids, mask, None, slots, self.lean, wanted)


def seen_both_ways(lengths: torch.Tensor, places: int) -> torch.Tensor:
    """Which places each place sees, bool of shape (rows, places, places)."""
    at = torch.arange(places)
    inside = at < lengths[:, None]
    return (at <= at[:, None]) | (inside[:, None] & inside[:, :, None])


def test_another_thinker_can_stand_in_the_loop(embedder: ReasoningEmbedder) -> None:
    """Its results are those of one pass over everything under its own mask."""
    model, token = embedder.causal_lm, embedder.conversation.embed_token_id
    prompts = random_prompts(model, 20, rows=12)
    prompts += prompts[:3]
    options = {"embed_token_id": token, "max_new_tokens": BUDGET}
    generations = [think(BothWays(model), prompts, batch_size=size, **options) for size in (3, 64)]
    for prompt, one, other in zip(prompts, *generations, strict=True):
        assert one.ids == other.ids
        ids = [*prompt, *one.ids, token]
        mask = torch.zeros(1, 1, len(ids), len(ids))
        mask.masked_fill_(~seen_both_ways(torch.tensor([len(prompt)]), len(ids)), torch.finfo(mask.dtype).min)
        with torch.no_grad():
            states = model.base_model(torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]
            logits = lm_head(model)(states[len(prompt) - 1 : -1])
        assert logits.argmax(-1).tolist()[: len(one.ids)] == one.ids
        for generation in (one, other):
            torch.testing.assert_close(generation.state, states[-1], atol=1e-4, rtol=1e-4)
    causal = run(embedder, prompts)
    assert any(one.ids != other.ids for one, other in zip(causal, generations[0], strict=True))


@pytest.mark.parametrize("batch_size", [3, 41])
@pytest.mark.parametrize("budget", [0, BUDGET])
def test_tokens_are_told_as_they_are_written(embedder: ReasoningEmbedder, batch_size: int, budget: int) -> None:
    prompts = random_prompts(embedder.causal_lm, 5)
    told: dict[int, list[int]] = {row: [] for row in range(len(prompts))}
    options: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": budget}
    with_hook = run(embedder, prompts, on_token=lambda row, token: told[row].append(token), **options)
    plain = run(embedder, prompts, **options)
    assert [told[row] for row in range(len(prompts))] == [g.ids for g in with_hook] == [g.ids for g in plain]
    assert all(torch.equal(a.state, b.state) for a, b in zip(with_hook, plain, strict=True))
