"""The lean pass of BERT decoders: the stock pass's numbers, for less work, and only where both are the same thing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from searchr3_embed.engine import decode, forward
from searchr3_embed.engine.cpu import bert_forward, kernels

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(scope="module")
def model(mini_checkpoint: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(mini_checkpoint, dtype=torch.float32).eval()


every_way = pytest.mark.parametrize(
    "way", [None, kernels._turned, pytest.param(kernels._fused, marks=needs_onednn)], ids=["stock", "turned", "onednn"]
)


@contextlib.contextmanager
def fastest(way: kernels._Way | None) -> Iterator[None]:
    """As on a machine where all products are fastest this way; None is torch's default."""
    with pytest.MonkeyPatch.context() as patch, kernels.fastest_products():
        patch.setattr(kernels, "_fastest_way", lambda rows: way)
        yield


def stock(model: PreTrainedModel, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.base_model(input_ids=ids, **options).last_hidden_state


@every_way
@given(rows=st.integers(1, 5), tokens=st.integers(1, 20), places=st.integers(0, 3), seed=st.integers(0, 99))
def test_states_are_those_of_the_stock_pass(
    model: PreTrainedModel, way: kernels._Way | None, rows: int, tokens: int, places: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 300, (rows, tokens), generator=generator)
    wanted = torch.randint(0, tokens, (rows, places), generator=generator)
    with torch.no_grad(), fastest(way):
        expected = stock(model, ids)
        torch.testing.assert_close(
            bert_forward.states(model, ids, None, None, None, None), expected, atol=1e-5, rtol=1e-5
        )
        found = bert_forward.states(model, ids, None, None, None, wanted)
    torch.testing.assert_close(found, expected[torch.arange(rows)[:, None], wanted], atol=1e-5, rtol=1e-5)


@every_way
@given(rows=st.integers(1, 4), before=st.integers(1, 9), tokens=st.integers(1, 5), seed=st.integers(0, 99))
def test_what_the_cache_holds_is_looked_at_and_what_is_read_is_kept(
    model: PreTrainedModel, way: kernels._Way | None, rows: int, before: int, tokens: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 300, (rows, before + tokens), generator=generator)
    wanted = torch.randint(0, tokens, (rows, 1), generator=generator)
    places = torch.arange(before + tokens)
    hides = places > places[before:, None]
    mask = torch.zeros(hides.shape).masked_fill(hides, torch.finfo(torch.float32).min)[None, None]
    positions = places[before:].expand(rows, -1)
    with torch.no_grad(), fastest(way):
        expected = stock(model, ids)
        cache, theirs = DynamicCache(), DynamicCache()
        # Nothing is asked for: the cache is filled all the same.
        assert bert_forward.states(model, ids[:, :before], None, None, cache, ids[:, :0]).shape[1] == 0
        found = bert_forward.states(model, ids[:, before:], mask, positions, cache, wanted)
        stock(model, ids, past_key_values=theirs, use_cache=True)
    torch.testing.assert_close(found, expected[torch.arange(rows)[:, None], before + wanted], atol=1e-5, rtol=1e-5)
    for mine, other in zip(cache.layers, theirs.layers, strict=True):
        torch.testing.assert_close(mine.keys, other.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine.values, other.values, atol=1e-5, rtol=1e-5)


@every_way
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), before=st.integers(0, 4), seed=st.integers(0, 99))
def test_padding_left_out_changes_nothing(
    model: PreTrainedModel, way: kernels._Way | None, lengths: list[int], before: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, tokens = len(lengths), max(lengths)
    ids = torch.randint(5, 300, (rows, before + tokens), generator=generator)
    ends = torch.tensor(lengths)[:, None]
    wanted = torch.cat([ends - 1, (ends - 2).clamp(min=0)], dim=1)
    real = torch.arange(tokens) < ends
    mask = positions = cache = None
    with torch.no_grad(), fastest(way):
        expected = stock(model, ids)[torch.arange(rows)[:, None], before + wanted]
        if before:
            cache, places = DynamicCache(), torch.arange(before + tokens)
            bert_forward.states(model, ids[:, :before], None, None, cache, ids[:, :0])
            hides = places > places[before:, None]
            mask = torch.zeros(hides.shape).masked_fill(hides, torch.finfo(torch.float32).min)[None, None]
            positions = places[before:].expand(rows, -1)
        found = bert_forward.states(model, ids[:, before:], mask, positions, cache, wanted, real)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("lengths", "tokens"), [((9, 9, 9), 27), ((9, 9, 8, 9), 36), ((9, 9, 7), 25), ((9, 1), 10)])
def test_only_what_is_asked_for_is_computed(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], tokens: int
) -> None:
    """Of the last layer keys and values alone, and of padding, unless there is little, nothing."""
    seen: dict[nn.Linear, int] = {}

    def count(layer: nn.Linear, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen[layer] = seen.get(layer, 0) + tokens.shape[:-1].numel()
        return plain(layer, tokens, *args, **kwargs)

    plain = bert_forward.product
    monkeypatch.setattr(bert_forward, "product", count)
    forward.embed(model, [[5 + i % 50 for i in range(length)] for length in lengths])
    *_, before, last = model.base_model.encoder.layer
    everywhere = [last.attention.self.key, last.attention.self.value]
    only_there = [last.attention.self.query, last.attention.output.dense, last.intermediate.dense, last.output.dense]
    assert {seen[layer] for layer in everywhere} == {tokens} == {seen[before.output.dense]}
    assert {seen[layer] for layer in only_there} == {len(lengths)}


@needs_onednn
@pytest.mark.parametrize("lengths", [(9, 9, 9, 9), (11, 9, 6), (11,), (7,) * 11])
def test_onednn_meets_few_sizes(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]
) -> None:
    """In prefill, in steps and in the last layer."""
    sizes: set[int] = set()

    def watch(layer: Any, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        sizes.add(len(tokens))
        return plain(layer, tokens, *args, **kwargs)

    plain = bert_forward.product
    monkeypatch.setattr(bert_forward, "product", watch)
    prompts = [[5 + (i * (row + 3)) % 50 for i in range(length)] for row, length in enumerate(lengths)]
    with fastest(kernels._fused):
        forward.embed(model, prompts)
        decode.think(model, prompts, embed_token_id=4, max_new_tokens=3)
    assert len(sizes) > 1
    assert sizes == {kernels.few_sizes(n) for n in sizes}


def test_only_plain_decoders_in_evaluation_mode_fit(
    model: PreTrainedModel, mini_checkpoint: Path, qwen2_checkpoint: Path
) -> None:
    def fresh(folder: Path = mini_checkpoint) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    assert bert_forward.fits(model)
    assert not bert_forward.fits(fresh(qwen2_checkpoint))
    assert not bert_forward.fits(fresh().train())
    with torch.autocast("cpu", torch.bfloat16):
        assert not bert_forward.fits(model)
    adapted = get_peft_model(fresh(), LoraConfig(target_modules=["query"]))
    assert not bert_forward.fits(adapted.get_base_model())
    for part in (lambda m: m.base_model, lambda m: m.base_model.encoder.layer[0].output.LayerNorm):
        hooked = fresh()
        part(hooked).register_forward_hook(lambda *args: None)
        assert not bert_forward.fits(hooked)
    # Hidden states were asked for once; the hooks that this leaves behind do nothing.
    watched = fresh()
    watched(torch.tensor([[5, 6, 7]]), output_hidden_states=True)
    assert any(module._forward_hooks for module in watched.base_model.modules()) and bert_forward.fits(watched)
    both_ways = fresh()
    both_ways.config.is_decoder = False
    assert not bert_forward.fits(both_ways)
    other = fresh()
    other.base_model.encoder.layer[1].intermediate.intermediate_act_fn = nn.ReLU()
    assert not bert_forward.fits(other)
