"""Sentence vectors of a plain BERT: those of its own forward pass, and only where that can be said."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from searchr3_embed.engine import encode

TURNS = [[5, 6, 7, 8, 9], [5, 9], [4], [int(token) for token in torch.arange(4, 60)], [9, 8, 7, 6, 5], [5, 9]]


def bert(**changes: Any) -> BertModel:
    torch.manual_seed(0)
    config = {
        "vocab_size": 64,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    return BertModel(BertConfig(**{**config, **changes})).eval()


@pytest.fixture(scope="module")
def model() -> BertModel:
    return bert()


def by_itself(model: BertModel, turn: list[int], pooling: str) -> Tensor:
    with torch.no_grad():
        states = model(torch.tensor([turn])).last_hidden_state[0]
    return states[0] if pooling == "cls" else states.mean(dim=0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_vectors_are_the_models_own(model: BertModel, pooling: encode.PoolingMode, batch_size: int) -> None:
    done: list[int] = []
    vectors = encode.encode(model, TURNS, pooling, batch_size=batch_size, progress=done.append)
    expected = torch.stack([by_itself(model, turn, pooling) for turn in TURNS])
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-5)
    assert vectors.dtype == torch.float32 and sum(done) == len(TURNS) and max(done) <= batch_size


def test_half_precision_gives_float32(model: BertModel) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert encode.fits(half)
    vectors = encode.encode(half, TURNS, "mean")
    assert vectors.dtype == torch.float32
    cosines = torch.nn.functional.cosine_similarity(vectors, encode.encode(model, TURNS, "mean"))
    assert cosines.min() > 0.99


def hooked(model: BertModel) -> None:
    model.encoder.layer[1].register_forward_hook(lambda *_: None)


def training(model: BertModel) -> None:
    model.train()


def compiled(model: BertModel) -> None:
    model.compile()


def with_a_compiled_layer(model: BertModel) -> None:
    model.encoder.layer[1].compile()


def with_another_layer(model: BertModel) -> None:
    class Mine(nn.Linear):
        pass

    model.encoder.layer[1].output.dense = Mine(64, 48)


@pytest.mark.parametrize("change", [hooked, training, compiled, with_a_compiled_layer, with_another_layer])
def test_a_changed_model_does_not_fit(model: BertModel, change: Callable[[BertModel], None]) -> None:
    changed = copy.deepcopy(model)
    assert encode.fits(changed)
    change(changed)
    assert not encode.fits(changed)


def test_other_models_do_not_fit(model: BertModel) -> None:
    assert not encode.fits(bert(is_decoder=True))
    assert not encode.fits(torch.compile(model))  # type: ignore[arg-type]
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not encode.fits(quantised)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not encode.fits(model)
    assert encode.fits(model) and encode.fits(bert(hidden_act="gelu"))


def test_the_padding_mask_hides_padding_and_nothing_else() -> None:
    real = torch.tensor([[True, True, False], [True, True, True]])
    mask = encode.padding_mask(real, torch.float32)
    assert mask.shape == (2, 1, 3, 3)
    assert torch.equal(mask[:, 0] == 0, real[:, None].expand(2, 3, 3))
    assert mask.min() == torch.finfo(torch.float32).min
