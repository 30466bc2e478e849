"""The shape of the reward: what must rise, what must fall, and what is worst."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.rl.corpus.environment import Outcome
from training.rl.reward import RewardSettings, brevity, is_finished, margin, rewards, scaled_dcg

cosines = st.floats(-1, 1)
places = st.lists(st.integers(0, 10**6), min_size=1, max_size=8, unique=True)


def outcome(ranks: list[list[int]], similarities: list[list[float]], hardest: list[float] | None = None) -> Outcome:
    return Outcome(
        [np.array(row) for row in ranks],
        [np.array(row, dtype=np.float32) for row in similarities],
        np.array(hardest if hardest is not None else [0.1] * len(ranks), dtype=np.float32),
        np.zeros((len(ranks), 0), dtype=np.int64),
        refreshed=0,
        share_refreshed=0.0,
        staleness=0.0,
        seconds_encoding=0.0,
        seconds_search=0.0,
        seconds_graph=0.0,
    )


def test_scaled_dcg_by_hand() -> None:
    assert scaled_dcg([0], [0.8]) == pytest.approx(0.8)
    assert scaled_dcg([2], [0.8]) == pytest.approx(0.4)
    assert scaled_dcg([0, 1], [1.0, 1.0]) == pytest.approx(1.0)
    # (3 * 0.5 / log2(3) + 1 * 1 / log2(2)) / (3 / log2(2) + 1 / log2(3))
    assert scaled_dcg([1, 0], [0.5, 1.0], [3, 1]) == pytest.approx(1.946395 / 3.630930, abs=1e-6)


@given(places, st.data())
def test_scaled_dcg_is_monotone_and_bounded(ranks: list[int], data: st.DataObject) -> None:
    similarities = data.draw(st.lists(cosines, min_size=len(ranks), max_size=len(ranks)))
    i = data.draw(st.integers(0, len(ranks) - 1))
    value = scaled_dcg(ranks, similarities)
    assert 0 <= value <= 1 + 1e-9
    lower = [*ranks[:i], ranks[i] + 10**6 + 1, *ranks[i + 1 :]]
    closer = [*similarities[:i], (similarities[i] + 1) / 2, *similarities[i + 1 :]]
    assert scaled_dcg(lower, similarities) <= value
    assert scaled_dcg(ranks, closer) >= value
    if similarities[i] > 0.01:
        assert scaled_dcg(lower, similarities) < value < scaled_dcg(ranks, closer) or similarities[i] > 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "at least one positive"),
        (([0], [0.5, 0.5]), "got 1, 2 and 1"),
        (([0], [0.5], [1, 1]), "got 1, 1 and 2"),
        (([0], [0.5], [0]), "above 0, got 0"),
    ],
)
def test_scaled_dcg_refuses(arguments: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scaled_dcg(*arguments)  # type: ignore[arg-type]


def test_margin_and_brevity() -> None:
    assert margin([0.2, 0.8], 0.4) == pytest.approx(0.2)
    assert margin([0.2], 0.8) == pytest.approx(-0.3)
    assert margin([-1.0], 1.0) == -1.0
    assert margin([0.5], float("nan")) == 0.0
    assert [brevity(length, 4) for length in (0, 1, 4, 100)] == [1.0, 0.75, 0.0, 0.0]


def test_is_finished() -> None:
    assert is_finished([5, 6, 9], 9) and is_finished([9], 9)
    assert not is_finished([5, 6], 9)
    assert not is_finished([9, 5], 9)
    assert not is_finished([9, 5, 9], 9)
    assert not is_finished([], 9)


def test_differs_within_a_group_when_all_rank_first() -> None:
    group = rewards(outcome([[0]] * 4, [[0.7], [0.71], [0.72], [0.73]]), [True] * 4, [3] * 4, RewardSettings())
    assert (np.diff(group) > 0.005).all()


@given(
    st.lists(st.tuples(st.integers(0, 10**6), cosines, cosines, st.integers(0, 500)), min_size=2, max_size=8),
    st.floats(0, 0.29),
    st.floats(0, 2),
    st.data(),
)
def test_failed_is_strictly_lowest(
    rollouts: list[tuple[int, float, float, int]], margin_weight: float, brevity_weight: float, data: st.DataObject
) -> None:
    finished = data.draw(st.lists(st.booleans(), min_size=len(rollouts), max_size=len(rollouts)))
    settings = RewardSettings(margin=margin_weight, brevity=brevity_weight)
    scores = outcome([[r[0]] for r in rollouts], [[r[1]] for r in rollouts], [r[2] for r in rollouts])
    values = rewards(scores, finished, [r[3] for r in rollouts], settings)
    assert np.isfinite(values).all()
    for value, good in zip(values, finished, strict=True):
        assert value > settings.failed if good else value == settings.failed == -0.2


def test_scores_of_the_finished_only_are_put_in_their_places() -> None:
    finished = [False, True, False, True]
    some = rewards(outcome([[0], [1]], [[0.9], [0.8]]), finished, [1] * 4, RewardSettings())
    every = rewards(outcome([[7], [0], [7], [1]], [[0.1], [0.9], [0.1], [0.8]]), finished, [1] * 4, RewardSettings())
    np.testing.assert_array_equal(some, every)
    assert some.tolist() == pytest.approx([-0.2, 1.0, -0.2, 0.1 + 0.8 / np.log2(3)])


def test_all_failed_and_none_at_all() -> None:
    assert rewards(outcome([], []), [False, False], [9, 9], RewardSettings()).tolist() == [-0.2, -0.2]
    assert rewards(outcome([], []), [], [], RewardSettings()).shape == (0,)


def test_every_part_has_its_weight() -> None:
    settings = RewardSettings(dcg=2.0, format=0.5, margin=0.4, brevity=0.3, brevity_tokens=10)
    values = rewards(outcome([[0]], [[0.8]], [0.4]), [True], [5], settings, relevances=[[2]])
    assert values.tolist() == pytest.approx([2.0 * 0.8 + 0.5 + 0.4 * 0.2 + 0.3 * 0.5])


def test_relevances_count() -> None:
    scores = outcome([[0, 5]] * 2, [[0.8, 0.8]] * 2)
    values = rewards(scores, [True] * 2, [1, 1], RewardSettings(), relevances=[[3, 1], [1, 3]])
    assert values[0] > values[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dcg": -1.0}, "dcg must be a finite number >= 0, got -1.0"),
        ({"margin": float("nan")}, "margin must be a finite number"),
        ({"brevity_tokens": 0}, "brevity_tokens must be an integer >= 1, got 0"),
        ({"failed": 0.1}, "failed must be below"),
        ({"margin": 0.5}, "failed must be below format - margin = -0.4"),
    ],
)
def test_bad_settings(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardSettings(**fields)  # type: ignore[arg-type]


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="3 rollouts, 2 finished, have 3 lengths and 1 scores"):
        rewards(outcome([[0]], [[0.5]]), [True, True, False], [1] * 3, RewardSettings())
    with pytest.raises(ValueError, match="have 1 lengths"):
        rewards(outcome([[0]] * 2, [[0.5]] * 2), [True, True], [1], RewardSettings())
    with pytest.raises(ValueError, match="relevances for 1"):
        rewards(outcome([[0]] * 2, [[0.5]] * 2), [True, True], [1, 1], RewardSettings(), relevances=[[1]])
