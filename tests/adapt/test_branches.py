"""What the trainer computes of a thinker on an encoder's own pass is what the engine computed when it wrote."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.adapt import branches
from searchr3_embed.engine import decode
from searchr3_embed.engine.head import lm_head
from searchr3_embed.engine.one_pass import OnePassThinker
from tests import tiny_encoders
from training.rl.log_probabilities import log_probabilities

QUESTIONS = ["how do stones travel in ice", "csv", "which river flows through paris and where does it end"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> ReasoningEmbedder:
    folder = tmp_path_factory.mktemp("thinker")
    encoder = tiny_encoders.save_bert(folder / "encoder", hidden=32)
    return ReasoningEmbedder(str(tiny_encoders.save_with_thinker(folder / "both", encoder, ends=9.0)), device="cpu")


def test_log_probabilities_and_states_are_the_engines(embedder: ReasoningEmbedder) -> None:
    model: Any = embedder.causal_lm
    encoder: Any = embedder[0].auto_model
    talk = embedder.conversation
    assert talk.prompts.distinct_tokens
    # Several answers to each prompt, prompts of many lengths.
    prompts = [turn for turn in talk.reasoning_turns(talk.text_ids(QUESTIONS)) for _ in range(6)]
    written = decode.think(
        OnePassThinker(encoder, model),
        prompts,
        embed_token_id=talk.embed_token_id,
        max_new_tokens=7,
        batch_size=5,
        distinct=True,
        temperature=0.9,
        generator=torch.Generator().manual_seed(0),
        log_probabilities=True,
    )
    lengths = {len(generation.chosen) for generation in written}
    assert 1 in lengths and max(lengths) == 8 and len(lengths) > 3, "empty, long and unfinished ones"
    left, right = max(map(len, prompts)), 8
    ids, mask = (torch.zeros(len(prompts), left + right, dtype=torch.long) for _ in range(2))
    for row, (prompt, generation) in enumerate(zip(prompts, written, strict=True)):
        here = slice(left - len(prompt), left + len(generation.chosen))
        ids[row, here] = torch.tensor([*prompt, *generation.chosen])
        mask[row, here] = 1
    odds, entropy, closing = log_probabilities(
        model, lm_head(model), ids, mask, right, 0.9, distinct=True, encoder=encoder
    )
    for row, generation in enumerate(written):
        count = len(generation.chosen)
        torch.testing.assert_close(odds[row, :count], torch.tensor(generation.log_probabilities), atol=1e-4, rtol=1e-4)
        assert not odds[row, count:].any() and (entropy[row, :count] > 0).all()
        if generation.finished:
            torch.testing.assert_close(closing[row], generation.state, atol=1e-4, rtol=1e-4)
    closing.sum().backward()
    assert all(value.grad is None for value in encoder.parameters()), "the encoder gets no gradient"
    model.zero_grad()


def test_an_empty_answer_ends_at_its_prompt(embedder: ReasoningEmbedder) -> None:
    model: Any = embedder.causal_lm
    encoder: Any = embedder[0].auto_model
    talk = embedder.conversation
    end = talk.embed_token_id
    prompts = talk.reasoning_turns(talk.text_ids(QUESTIONS))
    answers = [[], [end], [7, 8, end]]
    with torch.no_grad():
        states, before, last = branches.states(model, prompts, answers, None, torch.device("cpu"), encoder)
        assert len(before) == 4
        longer, _, _ = branches.states(model, prompts[:1], [[end]], None, torch.device("cpu"), encoder)
    torch.testing.assert_close(states[last[0]], longer[0], atol=1e-5, rtol=1e-5)
    nothing = decode.think(OnePassThinker(encoder, model), prompts, embed_token_id=end, max_new_tokens=0, batch_size=2)
    torch.testing.assert_close(states[last[1]], nothing[1].state, atol=1e-4, rtol=1e-4)
