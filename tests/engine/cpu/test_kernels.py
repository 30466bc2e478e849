"""The fastest products: the same numbers, layers that stay as they are, and the stock path where it must be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.engine.cpu import kernels

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


ways = pytest.mark.parametrize("way", [kernels._turned, pytest.param(kernels._fused, marks=needs_onednn)])


@contextlib.contextmanager
def fastest(way: kernels._Way | None) -> Iterator[None]:
    """As on a machine where all products are fastest this way; None is torch's default."""
    with pytest.MonkeyPatch.context() as patch, kernels.fastest_products():
        patch.setattr(kernels, "_fastest_way", lambda rows: way)
        yield


@ways
@given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 65),
    outputs=st.integers(1, 65),
    bias=st.booleans(),
    deep=st.booleans(),
)
def test_products_and_what_follows_equal_the_stock_ones(
    way: kernels._Way, rows: int, inputs: int, outputs: int, bias: bool, deep: bool
) -> None:
    layer = nn.Linear(inputs, outputs, bias=bias)
    before = (2, rows) if deep else (rows,)
    values, more = torch.randn(*before, inputs), torch.randn(*before, outputs)
    with torch.no_grad():
        expected = layer(values)
        for options, wanted in (
            ({}, expected),
            ({"gelu": True}, nn.functional.gelu(expected)),
            ({"add": more}, expected + more),
        ):
            stock = kernels.product(layer, values, **options)
            with fastest(way):
                found = kernels.product(layer, values, **options)
            for one in (stock, found):
                torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5)


@ways
def test_weights_that_change_later_are_seen(way: kernels._Way) -> None:
    layer, values = nn.Linear(24, 40), torch.randn(64, 24)
    with torch.no_grad(), fastest(way):
        expected = kernels.product(layer, values)
        layer.weight.mul_(2)
        layer.bias.mul_(2)
        torch.testing.assert_close(kernels.product(layer, values), 2 * expected)


def test_autocast_other_dtypes_and_layers_without_bias_take_the_stock_path() -> None:
    layer, values = nn.Linear(24, 40), torch.randn(64, 24)
    with torch.no_grad(), fastest(lambda *_: pytest.fail("another way was taken")):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert kernels.product(layer, values).dtype == torch.bfloat16
        assert kernels.product(layer.bfloat16(), values.bfloat16()).dtype == torch.bfloat16
        without = nn.Linear(24, 40, bias=False)
        assert torch.equal(kernels.product(without, values), without(values))


def test_a_wrong_result_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any) -> torch.Tensor:
        return kernels._stock(*args) + 0.01

    times = iter([1.0, 0.1, 0.1])
    monkeypatch.setattr(kernels, "least_seconds", lambda call: next(times))
    monkeypatch.setattr(kernels, "_turned", wrong)
    monkeypatch.setattr(kernels, "_fused", wrong)
    assert kernels._fastest_way.__wrapped__(8) is None
    assert not list(times)


@pytest.mark.parametrize("problem", [RuntimeError, AttributeError])
def test_a_torch_without_the_operation_is_no_error(monkeypatch: pytest.MonkeyPatch, problem: type[Exception]) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise problem("not built with oneDNN")

    times = iter([1.0, 0.5])
    monkeypatch.setattr(kernels, "least_seconds", lambda call: next(times))
    monkeypatch.setattr(kernels, "_fused", missing)
    assert kernels._fastest_way.__wrapped__(8) is kernels._turned


@ways
def test_embeddings_are_the_same_either_way(mini_checkpoint: Path, way: kernels._Way) -> None:
    texts = [f"tide moon ship {number} " * (1 + number % 5) for number in range(24)]
    calls: list[int] = []

    def counted(*args: Any) -> torch.Tensor:
        calls.append(1)
        return way(*args)

    embedder = ReasoningEmbedder(str(mini_checkpoint), device="cpu")
    for encode in (embedder.encode_document, embedder.encode_query):
        with fastest(None):
            stock = encode(texts)
        assert not calls
        with fastest(counted):
            ours = encode(texts)
        assert calls and abs(stock - ours).max() < 1e-5
        calls.clear()


@given(rows=st.integers(1, 5000))
def test_products_have_few_sizes(rows: int) -> None:
    layer = nn.Linear(2, 2)
    with fastest(kernels._fused):
        computed = kernels.rows_computed(layer, rows)
        assert kernels.rows_computed(layer, computed) == computed
    assert rows <= computed <= max(rows * 1.25, 8)
    assert rows < 512 or computed <= 1.07 * rows
    for other in (None, kernels._turned):
        with fastest(other):
            assert kernels.rows_computed(layer, rows) == rows
    assert kernels.rows_computed(layer, rows) == rows


def test_up_to_two_thousand_rows_there_are_a_hundred_sizes() -> None:
    assert len({kernels.few_sizes(rows) for rows in range(1, 2049)}) <= 100


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
