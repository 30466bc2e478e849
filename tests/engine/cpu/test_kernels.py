"""oneDNN's products: the same numbers, models that save and copy as before, and the stock path where it must be."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.engine.cpu import kernels

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where oneDNN is faster."""
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda: True)


def fast_layer(inputs: int = 24, outputs: int = 40, bias: bool = True) -> nn.Linear:
    layer = nn.Sequential(nn.Linear(inputs, outputs, bias=bias))
    kernels.speed_up(layer)
    return layer[0]


@needs_onednn
@given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 65),
    outputs=st.integers(1, 65),
    bias=st.booleans(),
    deep=st.booleans(),
)
def test_products_equal_the_stock_ones(rows: int, inputs: int, outputs: int, bias: bool, deep: bool) -> None:
    layer = nn.Linear(inputs, outputs, bias=bias)
    fast = copy.deepcopy(layer)
    fast.__class__ = kernels.OneDnnLinear
    values = torch.randn(2, rows, inputs) if deep else torch.randn(rows, inputs)
    with torch.no_grad():
        torch.testing.assert_close(fast(values), layer(values), rtol=1e-4, atol=1e-5)


@needs_onednn
@given(rows=st.integers(1, 70), inputs=st.integers(1, 65), outputs=st.integers(1, 65))
def test_what_follows_a_product_is_computed_with_it(rows: int, inputs: int, outputs: int) -> None:
    layer = nn.Linear(inputs, outputs)
    fast = copy.deepcopy(layer)
    fast.__class__ = kernels.OneDnnLinear
    values, more = torch.randn(2, rows, inputs), torch.randn(2, rows, outputs)
    with torch.no_grad():
        expected = layer(values)
        for one in (layer, fast):
            for options, wanted in (
                ({}, expected),
                ({"gelu": True}, nn.functional.gelu(expected)),
                ({"add": more}, expected + more),
            ):
                torch.testing.assert_close(kernels.product(one, values, **options), wanted, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_layers_keep_their_names_values_copies_and_pickles(faster: None) -> None:
    layer = fast_layer()
    assert type(layer) is kernels.OneDnnLinear and list(layer.state_dict()) == ["weight", "bias"]
    values = torch.randn(64, 24)
    with torch.no_grad():
        expected = layer(values)
        for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(same(values), expected)
        layer.weight.mul_(2)
        layer.bias.mul_(2)
        # Weights that change later are seen: nothing is kept of them.
        torch.testing.assert_close(layer(values), 2 * expected)


@needs_onednn
def test_gradients_autocast_and_other_dtypes_take_the_stock_path(
    faster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = fast_layer()
    monkeypatch.setattr(kernels, "_onednn", lambda *_: pytest.fail("oneDNN was asked"))
    values = torch.randn(64, 24)
    layer(values).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(values).dtype == torch.bfloat16
        assert layer.bfloat16()(values.bfloat16()).dtype == torch.bfloat16


def test_subclasses_of_linear_are_left_alone(faster: None) -> None:
    class Adapter(nn.Linear):
        pass

    model = nn.Sequential(Adapter(4, 4), nn.Linear(4, 4))
    kernels.speed_up(model)
    assert [type(layer) for layer in model] == [Adapter, kernels.OneDnnLinear]


def test_where_it_is_not_faster_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda: False)
    model = nn.Sequential(nn.Linear(4, 4))
    kernels.speed_up(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("seconds", [[1.0, 1.0], [1.0, 0.5]])
def test_the_faster_one_is_taken(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> None:
    times = iter(seconds)
    monkeypatch.setattr(kernels, "least_seconds", lambda call: next(times))
    available = torch.backends.mkldnn.is_available()
    assert kernels.onednn_is_faster.__wrapped__() is (available and seconds[1] < seconds[0])


def test_a_wrong_result_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 0.1])
    monkeypatch.setattr(kernels, "least_seconds", lambda call: next(times))
    monkeypatch.setattr(kernels, "_onednn", lambda x, w, b, act: nn.functional.linear(x, w, b) + 0.01)
    assert not kernels.onednn_is_faster.__wrapped__()


def test_a_torch_without_the_operation_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise RuntimeError("not built with oneDNN")

    monkeypatch.setattr(kernels, "_onednn", missing)
    assert not kernels.onednn_is_faster.__wrapped__()


@needs_onednn
def test_embeddings_are_the_same_either_way(
    mini_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = [f"tide moon ship {number} " * (1 + number % 5) for number in range(24)]
    vectors = {}
    for fast in (False, True):
        monkeypatch.setattr(kernels, "onednn_is_faster", lambda fast=fast: fast)
        embedder = ReasoningEmbedder(str(mini_checkpoint), device="cpu")
        vectors[fast] = [embedder.encode_document(texts), embedder.encode_query(texts)]
    for stock, ours in zip(vectors[False], vectors[True], strict=True):
        assert abs(stock - ours).max() < 1e-5
    embedder.save_pretrained(str(tmp_path / "saved"))
    again = ReasoningEmbedder(str(tmp_path / "saved"), device="cpu")
    assert abs(again.encode_document(texts) - vectors[True][0]).max() < 1e-6


@given(rows=st.integers(1, 5000))
def test_products_have_few_sizes(rows: int) -> None:
    layer = kernels.OneDnnLinear(2, 2)
    computed = kernels.rows_computed(layer, rows)
    assert rows <= computed <= max(rows * 1.25, 8)
    assert rows < 512 or computed <= 1.07 * rows
    assert kernels.rows_computed(layer, computed) == computed
    assert kernels.rows_computed(nn.Linear(2, 2), rows) == rows


def test_up_to_two_thousand_rows_there_are_a_hundred_sizes() -> None:
    layer = kernels.OneDnnLinear(2, 2)
    assert len({kernels.rows_computed(layer, rows) for rows in range(1, 2049)}) <= 100


@needs_onednn
@pytest.mark.parametrize("way", [None, kernels._turned, kernels._fused])
def test_plain_layers_are_multiplied_the_fastest_way_only_where_that_is_asked_for(
    way: kernels._Way | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, asked = nn.Linear(24, 40), []
    monkeypatch.setattr(kernels, "_fastest_way", lambda rows: asked.append(rows) or way)
    values, more = torch.randn(5, 3, 24), torch.randn(5, 3, 40)
    with torch.inference_mode():
        expected = layer(values)
        kernels.product(layer, values)
        assert not asked
        with kernels.fastest_products():
            for options, wanted in (
                ({}, expected),
                ({"gelu": True}, nn.functional.gelu(expected)),
                ({"add": more}, expected + more),
            ):
                torch.testing.assert_close(kernels.product(layer, values, **options), wanted, rtol=1e-4, atol=1e-5)
            assert kernels.rows_computed(layer, 33) == (40 if way is kernels._fused else 33)
            kernels.product(layer.double(), values.double())
            assert asked == [16, 16, 16, 64]
    assert kernels.rows_computed(layer.float(), 33) == 33
    assert type(layer) is nn.Linear


@needs_onednn
def test_the_fastest_way_is_the_one_that_takes_least(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, expected in (
        ([1.0, 0.5, 0.7], kernels._turned),
        ([1.0, 0.7, 0.5], kernels._fused),
        ([1.0, 0.99, 0.98], None),  # noise
    ):
        times = iter(seconds)
        monkeypatch.setattr(kernels, "least_seconds", lambda call, times=times: next(times))
        assert kernels._fastest_way.__wrapped__(8) is expected
