"""A thinker on an encoder's own pass: what it writes and where it ends, against transformers' own forward passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertLMHeadModel, BertModel, DynamicCache

from searchr3_embed.engine import decode
from searchr3_embed.engine.one_pass import OnePassThinker
from searchr3_embed.models import one_pass_bert
from tests.engine.test_encode import bert

THINK, EMBED = 64, 65
PROMPTS = [
    [5, 6, 7, 8, 9, THINK],
    [5, 9, THINK],
    [4, THINK],
    [*range(4, 50), THINK],
    [5, 9, THINK],
    [21, 22, 23, THINK],
    *([first, 9, first + 1, THINK] for first in range(10, 20)),
]


@pytest.fixture(scope="module")
def encoder() -> BertModel:
    return bert()


@pytest.fixture(scope="module")
def model(encoder: BertModel) -> BertLMHeadModel:
    """Weights that differ from the encoder's, so that it matters which of the two reads a token."""
    model: Any = one_pass_bert.language_model(encoder, 66)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.bert.encoder.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
        rows = model.get_input_embeddings().weight
        rows[THINK:] = torch.randn(2, rows.shape[1], generator=draw)
        rows[EMBED] *= 1.5
        model.cls.predictions.bias += torch.randn(66, generator=draw)
    return model


def teacher_forced(encoder: BertModel, model: BertLMHeadModel, prompt: list[int], behind: list[int]) -> Tensor:
    """States at the last token of the prompt and at those behind it, in two passes of transformers.

    The encoder reads the question and its keys and values are noted; the language model reads the rest at once, each
    token seeing the question and what stands before it.
    """
    kept: list[Tensor] = []
    layers = encoder.encoder.layer
    heads = [getattr(layer.attention.self, kind) for layer in layers for kind in ("key", "value")]
    hooks = [module.register_forward_hook(lambda _, __, output: kept.append(output)) for module in heads]
    with torch.no_grad():
        encoder(torch.tensor([prompt[:-1]]))
    for hook in hooks:
        hook.remove()
    cache = DynamicCache()
    for number in range(len(layers)):
        keys, values = (tensor.unflatten(2, (4, -1)).transpose(1, 2) for tensor in kept[2 * number : 2 * number + 2])
        cache.update(keys, values, number)
    begin, ids = len(prompt) - 1, torch.tensor([[prompt[-1], *behind]])
    hidden = torch.ones(ids.shape[1], begin + ids.shape[1]).triu(begin + 1) * torch.finfo(torch.float32).min
    with torch.no_grad():
        return model.bert(
            ids,
            attention_mask=hidden[None, None],
            position_ids=torch.arange(begin, begin + ids.shape[1])[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0]


def write(encoder: BertModel, model: BertLMHeadModel, **options: Any) -> tuple[list[decode.Generation], Any]:
    thinker = OnePassThinker(encoder, model)
    found = decode.think(thinker, PROMPTS, embed_token_id=EMBED, max_new_tokens=6, log_probabilities=True, **options)
    return found, thinker


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_one_pass_is_two_passes(
    encoder: BertModel, model: BertLMHeadModel, lean: bool, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State, choices and their probabilities, by the fast pass and by the models' own."""
    if not lean:
        monkeypatch.setattr("searchr3_embed.engine.cpu.bert_forward._is_plain", lambda *_: False)
    generations, thinker = write(encoder, model, batch_size=batch_size)
    assert thinker.lean is thinker.lean_encoder is lean
    ends = set()
    for prompt, generation in zip(PROMPTS, generations, strict=True):
        states = teacher_forced(encoder, model, prompt, [*generation.ids, EMBED])
        torch.testing.assert_close(generation.state, states[-1], rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            log_probabilities = model.cls(states[:-1]).log_softmax(dim=-1)
        assert generation.chosen == log_probabilities.argmax(dim=-1).tolist()
        expected = log_probabilities.max(dim=-1).values
        torch.testing.assert_close(torch.tensor(generation.log_probabilities), expected, rtol=1e-4, atol=1e-4)
        ends.add((generation.finished, bool(generation.ids)))
    assert ends >= {(True, True), (False, True)}


def test_the_pass_gives_the_questions_means(encoder: BertModel, model: BertLMHeadModel) -> None:
    _, thinker = write(encoder, model)
    assert set(thinker.pooled) == {tuple(prompt[:-1]) for prompt in PROMPTS}
    for ids, mean in thinker.pooled.items():
        with torch.no_grad():
            expected = encoder(torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-5)
        assert mean.dtype == torch.float32


def test_equal_questions_are_read_once(
    encoder: BertModel, model: BertLMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    plain = OnePassThinker.read

    def counted(self: OnePassThinker, prompts: Any, *rest: Any) -> Tensor:
        read.append(len(prompts))
        return plain(self, prompts, *rest)

    monkeypatch.setattr(OnePassThinker, "read", counted)
    write(encoder, model)
    assert sum(read) == len(PROMPTS) - 1
