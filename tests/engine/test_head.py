"""Greedy choice from rough logits: always the token that full logits give."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.engine import head
from searchr3_embed.engine.cpu import kernels


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Numbers of rows that got all their logits in float32."""
    rows: list[int] = []
    plain = nn.Linear.forward

    def forward(self: nn.Linear, states: torch.Tensor) -> torch.Tensor:
        rows.append(len(states))
        return plain(self, states)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    yield rows


def layer(vocabulary: int, width: int, seed: int = 0, bias: bool = True) -> nn.Linear:
    torch.manual_seed(seed)
    made = nn.Linear(width, vocabulary, bias=bias)
    nn.init.normal_(made.weight)
    return made


def winners(decoder: nn.Linear, states: torch.Tensor, barred: torch.Tensor | None) -> torch.Tensor:
    with torch.no_grad():
        logits = decoder(states)
    if barred is not None:
        for row, tokens in enumerate(barred.tolist()):
            for token in tokens:
                if token >= 0:
                    logits[row, token] = -torch.inf
    return logits.argmax(-1)


@given(st.integers(0, 1000), st.sampled_from([1, 2, 5, 40, 3000]), st.integers(1, 9), st.booleans(), st.integers(0, 6))
def test_the_winner_is_that_of_full_logits(seed: int, vocabulary: int, rows: int, bias: bool, bars: int) -> None:
    decoder = layer(vocabulary, 24, seed, bias)
    states = torch.randn(rows, 24)
    barred = torch.randint(-1, max(1, vocabulary - 1), (rows, bars)) if bars else None
    if barred is not None and vocabulary > 1:
        # What would win is barred, so that it matters.
        barred[:, 0] = winners(decoder, states, None)
    got = head.RoughHead(decoder).likeliest(decoder, states, barred)
    assert got.tolist() == winners(decoder, states, barred).tolist()


def test_tokens_that_eight_bits_cannot_tell_apart_are_told_apart(counted: list[int]) -> None:
    decoder = layer(500, 64, bias=False)
    states = torch.randn(8, 64)
    with torch.no_grad():
        # 100 tokens within a rounding error of one another, which far exceeds the candidates; one is the best.
        decoder.weight[100:200] = states[0] * (1 + 1e-4 * torch.rand(100, 1))
    expected = winners(decoder, states, None)
    counted.clear()
    got = head.RoughHead(decoder).likeliest(decoder, states)
    assert got.tolist() == expected.tolist()
    assert 100 <= got[0] < 200
    assert counted and counted[0] >= 1, "a row that is not proven must get full logits"


def test_rows_of_nan_and_rows_without_a_token_left_are_as_argmax_has_them() -> None:
    decoder = layer(5, 24)
    states = torch.randn(3, 24)
    states[1] = torch.nan
    barred = torch.tensor([[-1] * 5, [-1] * 5, list(range(5))])
    got = head.RoughHead(decoder).likeliest(decoder, states, barred)
    assert got.tolist() == winners(decoder, states, barred).tolist()


def test_clear_winners_need_no_full_logits(counted: list[int]) -> None:
    decoder = layer(500, 64, bias=False)
    states = 3 * decoder.weight[:8].detach()
    assert head.RoughHead(decoder).likeliest(decoder, states).tolist() == list(range(8))
    assert not counted


def test_a_copy_is_kept_until_the_weights_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "int8_is_faster", lambda: True)
    decoder = layer(50, 8)
    first = head.rough_head(decoder)
    assert first is not None and head.rough_head(decoder) is first
    with torch.no_grad():
        decoder.weight[7] = 100 * torch.ones(8)
    second = head.rough_head(decoder)
    assert second is not None and second is not first
    assert second.likeliest(decoder, torch.ones(1, 8)).tolist() == [7]
    other = copy.deepcopy(decoder)
    assert head.rough_head(other) is not second


@pytest.mark.parametrize(
    "decoder",
    [layer(5, 4).double(), layer(5, 4).bfloat16(), type("Adapter", (nn.Linear,), {})(4, 5), nn.Identity()],
    ids=["float64", "bfloat16", "subclass", "no layer"],
)
def test_other_heads_are_left_alone(decoder: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "int8_is_faster", lambda: True)
    assert head.rough_head(decoder) is None


def test_autocast_and_large_heads_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "int8_is_faster", lambda: True)
    decoder = layer(50, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head.rough_head(decoder) is None
    monkeypatch.setattr(head, "_LARGEST_COPY_BYTES", 399)
    assert head.rough_head(decoder) is None


def test_a_product_that_overflows_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = head.RoughHead.most
    monkeypatch.setattr(head.RoughHead, "most", lambda self, states: inner(self, states).clamp(max=200))
    monkeypatch.setattr(head, "least_seconds", lambda call: pytest.fail("timed"))
    assert head.int8_is_faster.__wrapped__() is False


@pytest.mark.parametrize("seconds", [[1.0, 1.0], [1.0, 0.5]])
def test_it_is_used_where_it_is_faster(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> None:
    times = iter(seconds)
    monkeypatch.setattr(head, "least_seconds", lambda call: next(times))
    with torch.inference_mode():  # as the engine asks
        assert head.int8_is_faster.__wrapped__() is (seconds[1] < seconds[0])


@pytest.mark.parametrize("checkpoint", ["mini_checkpoint", "qwen2_checkpoint"])
def test_the_engine_writes_the_same_either_way(
    checkpoint: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = ReasoningEmbedder(str(request.getfixturevalue(checkpoint)), device="cpu")
    texts = [f"tide moon ship {number} " * (1 + number % 5) for number in range(24)]
    asked: list[int] = []
    inner = head.RoughHead.likeliest
    monkeypatch.setattr(head.RoughHead, "likeliest", lambda self, *args: asked.append(1) or inner(self, *args))
    results = {}
    for used in (False, True):
        monkeypatch.setattr(head, "int8_is_faster", lambda used=used: used)
        results[used] = embedder.reason(texts, max_reasoning_tokens=12)
        assert bool(asked) is used
    for plain, rough in zip(results[False], results[True], strict=True):
        assert plain.reasoning_ids == rough.reasoning_ids
        assert abs(plain.embedding - rough.embedding).max() < 1e-5
    assert any(result.reasoning_tokens for result in results[True])


def test_measuring_draws_no_random_numbers() -> None:
    # A training measures at its first step; one that goes on after a kill measures again.
    before = torch.get_rng_state()
    head.int8_is_faster.__wrapped__()
    for rows in (1, 64):
        kernels._fastest_way.__wrapped__(rows)
    assert torch.equal(torch.get_rng_state(), before)
