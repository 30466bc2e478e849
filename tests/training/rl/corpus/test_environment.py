"""The environment against brute force, under a policy that moves."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.rl.corpus import environment as module
from training.rl.corpus import graph as graph_module
from training.rl.corpus.drift import Drift
from training.rl.corpus.environment import Environment, EnvironmentSettings
from training.rl.corpus.graph import knn_graph
from training.rl.corpus.which_to_reencode import STRATEGIES, Candidates, rank_impact
from training.rl.reward import scaled_dcg

SIZE = 24


class Policy:
    """Encodes numbered documents; ``step`` moves all of them, partly alike. Remembers what it was asked to encode."""

    def __init__(self, count: int, alike: float = 0.01, apart: float = 0.005) -> None:
        rng = np.random.default_rng(7)
        # Clustered, as texts are: a query has competitors of all degrees.
        centres = rng.normal(size=(max(1, count // 20), SIZE))
        self.start = centres[rng.integers(0, len(centres), count)] + 0.7 * rng.normal(size=(count, SIZE))
        self.velocity = alike * rng.normal(size=SIZE) + apart * rng.normal(size=(count, SIZE))
        self.texts = [f"document {i}" for i in range(count)]
        self.step, self.asked = 0, [0] * 0

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = [int(text.split()[1]) for text in texts]
        self.asked += rows
        return unit((self.start + self.step * self.velocity)[rows])

    def all(self) -> np.ndarray:
        return unit(self.start + self.step * self.velocity)

    def rollouts(self, rng: np.random.Generator, queries: int, group: int) -> tuple[np.ndarray, list[list[int]]]:
        rows = np.repeat(rng.choice(len(self.start), queries, replace=False), group)
        near = self.all()[rows] + 0.12 * rng.normal(size=(len(rows), SIZE))
        return unit(near), [[int(row)] for row in rows]


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)


def build(policy: Policy, **fields: Any) -> Environment:
    settings = EnvironmentSettings(**fields)
    environment = Environment.build(policy.texts, policy.encode, settings, progress=False)
    policy.asked.clear()
    return environment


def brute_force(vectors: np.ndarray, query: np.ndarray, own: Sequence[int]) -> tuple[list[int], list[float], float]:
    scores = vectors @ query
    order = list(np.argsort(-scores, kind="stable"))
    others = np.delete(scores, own)
    return [order.index(row) for row in own], scores[list(own)].tolist(), float(others.max())


def agreement(policy: Policy, steps: int = 25, **fields: Any) -> tuple[float, float, float]:
    """Pearson of the rewards and share of equal advantage signs against brute force, and the share refreshed."""
    policy.step = 0
    environment = build(policy, **fields)
    rng = np.random.default_rng(3)
    got, true, share = [], [], []
    for policy.step in range(1, steps + 1):
        queries, positives = policy.rollouts(rng, queries=4, group=8)
        outcome = environment.step(queries, positives, policy.encode, policy.step)
        share.append(outcome.share_refreshed)
        got.append([scaled_dcg(*pair) for pair in zip(outcome.ranks, outcome.similarities, strict=True)])
        fresh = policy.all()
        true.append([scaled_dcg(*brute_force(fresh, *pair)[:2]) for pair in zip(queries, positives, strict=True)])
    a, b = np.reshape(got, (-1, 8)), np.reshape(true, (-1, 8))
    signs = np.sign(a - a.mean(1, keepdims=True)) == np.sign(b - b.mean(1, keepdims=True))
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1]), float(signs.mean()), float(np.mean(share))


def test_all_equals_brute_force_and_positives_count_against_one_another() -> None:
    policy = Policy(200)
    environment = build(policy, refresh="all", budget=3)
    rng = np.random.default_rng(0)
    for policy.step in (1, 2, 5):
        queries, positives = policy.rollouts(rng, 3, 2)
        positives = [[*own, int((own[0] + 1) % 200), int((own[0] + 50) % 200)] for own in positives]
        outcome = environment.step(queries, positives, policy.encode, policy.step)
        assert outcome.refreshed == 200 and outcome.share_refreshed == 1.0 and outcome.staleness == 0.0
        for i, own in enumerate(positives):
            ranks, cosines, hardest = brute_force(policy.all(), queries[i], own)
            assert outcome.ranks[i].tolist() == ranks
            np.testing.assert_allclose(outcome.similarities[i], cosines, atol=1e-6)
            assert outcome.hardest_negative[i] == pytest.approx(hardest, abs=1e-6)


def test_the_same_text_twice_does_not_outrank_the_positive() -> None:
    vectors = unit(np.eye(4))
    environment = Environment.build(["a", "a", "b"], lambda texts: vectors[: len(texts)] * 0 + vectors[0],
                                    EnvironmentSettings(), progress=False)  # fmt: skip
    outcome = environment.step(vectors[:1], [[1]], lambda texts: vectors[:0], 0)
    assert outcome.ranks[0].tolist() == [0]
    outcome = environment.step(vectors[:1], [[2, 0, 1]], lambda texts: vectors[:0], 0)
    assert sorted(outcome.ranks[0].tolist()) == [0, 1, 2]
    assert np.isnan(outcome.hardest_negative).all()  # every document is a positive


@pytest.mark.parametrize("refresh", ["neighbourhood", "impact"])
def test_rewards_stay_true_at_a_small_share(refresh: str) -> None:
    policy = Policy(1500, alike=0.02, apart=0.01)
    pearson, signs, share = agreement(policy, refresh=refresh, budget=75, candidates=24, neighbours=8)
    assert share <= 0.0501
    assert pearson >= 0.99 and signs >= 0.98
    stale, stale_signs, _ = agreement(policy, refresh="none")
    assert stale < pearson - 0.05 and stale_signs < signs - 0.1  # the policy moves enough to matter


def test_impact_needs_fewer_documents_than_rank_order() -> None:
    policy = Policy(1500, alike=0.02, apart=0.01)
    common = {"budget": 16, "candidates": 24, "neighbours": 8}
    assert agreement(policy, refresh="impact", **common)[1] > agreement(policy, refresh="neighbourhood", **common)[1]


def test_common_drift_is_corrected() -> None:
    policy = Policy(1500, alike=0.02, apart=0.01)
    common = {"refresh": "neighbourhood", "budget": 16, "candidates": 24, "neighbours": 8}
    assert agreement(policy, **common)[0] > agreement(policy, correct_drift=False, **common)[0] + 0.01


def test_drift_is_anchored_at_each_rows_stamp() -> None:
    way = np.array([0.3, -0.1, 0.0, 0.2], dtype=np.float32)
    drift = Drift.none(4)
    missed = np.full((50, 3), 0.02)
    for step in range(1, 30):
        drift.learn(np.tile(step * way, (50, 1)), np.zeros(50, dtype=np.int64), step, missed)
    np.testing.assert_allclose(drift.since(np.array([0, 10])), [29 * way, 19 * way], rtol=0.3)
    assert not drift.since(np.array([29])).any()
    assert 0.02 / 29 < drift.spread < 0.02
    before = drift.totals.copy()
    drift.learn(np.full((50, 4), 9.0), np.full(50, 29), 29, missed)  # encoded twice in one step: nothing to learn
    np.testing.assert_array_equal(before, drift.totals)


def candidates() -> Candidates:
    return Candidates(
        rows=np.array([2, 3, 5, 8, 9]),
        best_rank=np.array([64, 0, 64, 1, 64]),
        age=np.array([1, 1, 7, 9, 7]),
        impact=np.array([0.0, 0.1, 0.5, 0.1, 0.0]),
    )


@pytest.mark.parametrize(
    ("name", "order"),
    [("none", []), ("neighbourhood", [3, 8, 5, 9, 2]), ("impact", [5, 3, 8, 9, 2]), ("all", [2, 3, 5, 8, 9])],
)
def test_policies(name: str, order: list[int]) -> None:
    assert STRATEGIES[name](candidates()).tolist() == order


def test_rank_impact() -> None:
    spread = np.full(3, 0.01)
    scores = np.array([[0.50, 0.51, 0.60]])
    near, further, far = rank_impact(scores, np.array([0.5]), np.array([0]), spread)
    assert near > further > far and far < 1e-6
    assert near == pytest.approx(0.5 * (1 - 1 / np.log2(3)))
    assert rank_impact(scores, np.array([0.5]), np.array([9]), spread)[0] < near / 10  # deep ranks matter less
    assert rank_impact(scores, np.array([0.5]), np.array([0]), 10 * spread)[2] > far  # uncertain rows matter more
    twice = rank_impact(np.vstack([scores, scores]), np.array([0.5, 0.5]), np.array([0, 0]), spread)
    assert twice[0] == pytest.approx(2 * near)
    assert not rank_impact(scores, np.array([-0.5]), np.array([0]), spread).any()  # no gain, nothing to lose


@pytest.mark.parametrize("refresh", ["neighbourhood", "impact"])
def test_budget_positives_first_oldest_first(refresh: str) -> None:
    policy = Policy(100)
    environment = build(policy, refresh=refresh, budget=10)
    rng = np.random.default_rng(0)
    queries, positives = policy.rollouts(rng, 4, 2)
    own = sorted({row for rows in positives for row in rows})
    policy.step = 1
    outcome = environment.step(queries, positives, policy.encode, 1)
    assert outcome.refreshed == len(policy.asked) == len(set(policy.asked)) == 10
    assert sorted(policy.asked[:4]) == own
    assert (environment.stamps[policy.asked] == 1).all() and (environment.stamps == 1).sum() == 10
    np.testing.assert_array_equal(environment.vectors[policy.asked], policy.all()[policy.asked])
    # The same policy step again: what is fresh is not encoded again.
    before = set(policy.asked)
    environment.step(queries, positives, policy.encode, 1)
    assert len(policy.asked) == 20 and not before & set(policy.asked[10:])
    # More stale positives than budget: the oldest go first.
    policy.step, stale = 2, [int(np.flatnonzero(environment.stamps == 0)[0])]
    policy.asked.clear()
    environment.settings = EnvironmentSettings(refresh=refresh, budget=1)
    environment.step(queries[:1], [[*own, *stale]], policy.encode, 2)
    assert policy.asked == stale


@pytest.mark.parametrize("fields", [{"budget": 0}, {"refresh": "none"}, {"max_age": 5}])
def test_nothing_is_encoded(fields: dict[str, Any]) -> None:
    policy = Policy(50)
    environment = build(policy, **fields)
    policy.step = 5
    outcome = environment.step(*policy.rollouts(np.random.default_rng(0), 2, 2), policy.encode, 5)
    assert policy.asked == [] and outcome.refreshed == 0 and outcome.share_refreshed == 0.0
    assert outcome.staleness == 5.0


def test_age_beyond_the_allowed_one_is_refreshed() -> None:
    policy = Policy(50)
    environment = build(policy, max_age=5)
    policy.step = 6
    outcome = environment.step(*policy.rollouts(np.random.default_rng(0), 2, 2), policy.encode, 6)
    assert outcome.refreshed == len(policy.asked) == 50 and outcome.staleness == 0.0  # the budget is larger than that


def test_no_rollouts() -> None:
    policy = Policy(20)
    environment = build(policy)
    for nothing in (np.zeros((0, SIZE)), np.zeros(0), []):
        outcome = environment.step(np.asarray(nothing), [], policy.encode, 1)
        assert outcome.ranks == [] and outcome.hardest_negative.shape == (0,) and outcome.refreshed == 0
        assert outcome.staleness == 0.0


def test_corpus_of_one_document() -> None:
    policy = Policy(1)
    environment = build(policy, candidates=64)
    policy.step = 1
    outcome = environment.step(policy.all(), [[0]], policy.encode, 1)
    assert outcome.ranks[0].tolist() == [0] and outcome.refreshed == 1
    assert outcome.similarities[0][0] == pytest.approx(1.0)
    assert np.isnan(outcome.hardest_negative[0])


def test_more_candidates_and_neighbours_than_documents() -> None:
    policy = Policy(5)
    environment = build(policy, candidates=1000, neighbours=1000, budget=1000)
    assert environment.graph.shape == (5, 4)
    policy.step = 1
    assert environment.step(policy.all()[:2], [[0], [1, 2]], policy.encode, 1).refreshed == 5


def test_empty_document_stays_in_its_place(caplog: pytest.LogCaptureFixture, mini_checkpoint: Path) -> None:
    from searchr3_embed import ReasoningEmbedder

    embedder = ReasoningEmbedder(str(mini_checkpoint), device="cpu")

    def encode(texts: Sequence[str]) -> np.ndarray:
        return np.asarray(embedder.encode_document(list(texts), show_progress_bar=False))

    texts = ["how do rivers end", "", "a glacier is ice"]
    environment = Environment.build(texts, encode, EnvironmentSettings(), progress=False)
    assert "1 of 3 documents are empty" in caplog.text
    outcome = environment.step(encode(texts), [[0], [1], [2]], encode, 0)
    assert [rank.tolist() for rank in outcome.ranks] == [[0], [0], [0]]


def test_blocks_of_rollouts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(300)
    once = [trace(policy, build(policy), 4)]
    monkeypatch.setattr(module, "_MOST_SCORES", 600)
    policy.step = 0
    assert trace(policy, build(policy), 4) == once[0]


def trace(policy: Policy, environment: Environment, last: int, first: int = 1) -> list[Any]:
    """All that some steps say and leave behind, but for the times."""
    result: list[Any] = []
    for policy.step in range(first, last + 1):
        queries, positives = policy.rollouts(np.random.default_rng(policy.step), 3, 4)
        outcome = environment.step(queries, positives, policy.encode, policy.step)
        result.append([row.tolist() for row in outcome.ranks] + [outcome.refreshed, round(outcome.staleness, 9)])
    return [*result, environment.stamps.tolist(), environment.graph.tolist()]


@pytest.mark.parametrize("mapped", [False, True])
def test_restored_it_goes_on_as_if_never_stopped(tmp_path: Path, mapped: bool) -> None:
    policy = Policy(300)
    whole = build(policy, budget=20)
    expected = [trace(policy, whole, 3), trace(policy, whole, 6, first=4)]
    policy.step = 0
    folder = tmp_path / "vectors" if mapped else None
    settings = EnvironmentSettings(budget=20)
    first = Environment.build(policy.texts, policy.encode, settings, folder=folder, progress=False)
    assert isinstance(first.vectors, np.memmap) == mapped
    assert trace(policy, first, 3) == expected[0]
    first.save(tmp_path / "saved")
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    for _ in range(2):  # what goes on from it does not change what was saved
        second = Environment.load(tmp_path / "saved", policy.texts, settings)
        assert trace(policy, second, 6, first=4) == expected[1]
        np.testing.assert_array_equal(second.vectors, whole.vectors)
        np.testing.assert_array_equal(second.drift.totals, whole.drift.totals)
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == files
    second.save(tmp_path / "saved")
    assert len(list((tmp_path / "saved").iterdir())) == 3
    assert Environment.load(tmp_path / "saved", policy.texts, settings).stamps.max() == 6


@pytest.mark.parametrize("broken", ["save", "savez"])
def test_a_full_disk_keeps_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    policy = Policy(30)
    environment = build(policy)
    environment.save(tmp_path / "saved")
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    trace(policy, environment, 2)

    def full(file: Any, *args: Any, **kwargs: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, broken, full)
        with pytest.raises(OSError, match="cannot be saved in .*: No space left on device; what was saved"):
            environment.save(tmp_path / "saved")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == files
    assert Environment.load(tmp_path / "saved", policy.texts, environment.settings).stamps.max() == 0
    environment.save(tmp_path / "saved")  # and it can be saved when there is room again
    assert Environment.load(tmp_path / "saved", policy.texts, environment.settings).stamps.max() == 2


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    policy = Policy(30)
    environment = build(policy)
    folder = tmp_path / "saved"
    settings = environment.settings
    with pytest.raises(ValueError, match="holds no environment"):
        Environment.load(folder, policy.texts, settings)
    environment.save(folder)
    with pytest.raises(ValueError, match="another corpus: 30 documents with hash .* not these 29"):
        Environment.load(folder, policy.texts[1:], settings)
    with pytest.raises(ValueError, match="another corpus"):
        Environment.load(folder, [*policy.texts[:-1], "changed"], settings)
    with pytest.raises(ValueError, match="another corpus"):
        Environment.load(folder, policy.texts, settings, ids=[f"d{i}" for i in range(30)])
    state = json.loads((folder / "environment.json").read_text())
    vectors = folder / f"vectors-{state['generation']}.npy"
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match="broken"):
        Environment.load(folder, policy.texts, settings)
    vectors.write_bytes(whole)
    (folder / f"state-{state['generation']}.npz").unlink()
    with pytest.raises(ValueError, match="broken"):
        Environment.load(folder, policy.texts, settings)
    for text, message in (("{", "not valid JSON"), ('{"format": 99}', "format 1"), ("[]", "format 1")):
        (folder / "environment.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Environment.load(folder, policy.texts, settings)


def test_another_degree_makes_a_new_graph(tmp_path: Path) -> None:
    policy = Policy(40)
    environment = build(policy, neighbours=3)
    environment.save(tmp_path)
    loaded = Environment.load(tmp_path, policy.texts, EnvironmentSettings(neighbours=5))
    assert loaded.graph.shape == (40, 5)


def overlap(graph: np.ndarray, vectors: np.ndarray) -> float:
    true = knn_graph(vectors, graph.shape[1], 0)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(graph.tolist(), true.tolist(), strict=True)]))


def test_graph_is_exact() -> None:
    vectors = Policy(200).all()
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    np.testing.assert_array_equal(np.sort(knn_graph(vectors, 6, 0)), np.sort(np.argsort(-scores, axis=1)[:, :6]))
    same = np.repeat(vectors[:1], 20, axis=0)
    graph = knn_graph(same, 4, 0)
    assert not (graph == np.arange(20)[:, None]).any()
    assert knn_graph(vectors, 0, 0).shape == (200, 0)


def test_graph_of_a_large_corpus_finds_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = Policy(3000).all()
    monkeypatch.setattr(graph_module, "_MOST_EXACT", 1000)
    graph = knn_graph(vectors, 8, 0)
    np.testing.assert_array_equal(graph, knn_graph(vectors, 8, 0))
    monkeypatch.undo()
    assert overlap(graph, vectors) > 0.9


def test_edges_follow_the_rows_that_move() -> None:
    policy = Policy(400, apart=0.1)
    environment = build(policy, budget=60, neighbours=8, refresh="neighbourhood")
    old = environment.graph.copy()
    trace(policy, environment, 12)
    assert overlap(environment.graph, environment.vectors) > overlap(old, environment.vectors) + 0.1
    assert not (environment.graph == np.arange(400)[:, None]).any()
    assert all(len(set(row)) == 8 for row in environment.graph.tolist())


@pytest.mark.parametrize(
    ("embeddings", "positives", "step", "message"),
    [
        (lambda e: e[:, :5], [[0], [1]], 1, r"shape \(2, 24\).*got \(2, 5\)"),
        (lambda e: e, [[0]], 1, r"shape \(1, 24\), a row for each"),
        (lambda e: e * np.array([[1], [np.nan]]), [[0], [1]], 1, "rollout 1 is not finite"),
        (lambda e: e, [[0], []], 1, "rollout 1 has no positives"),
        (lambda e: e, [[0], [30]], 1, "rollout 1 has the positive 30; row numbers go from 0 to 29"),
        (lambda e: e, [[-1], [0]], 1, "rollout 0 has the positive -1"),
        (lambda e: e, [[0], [3, 3]], 1, r"rollout 1 has a positive twice: \[3, 3\]"),
        (lambda e: e, [[0], [1]], -1, "policy_step must not fall: got -1 after 0"),
    ],
)
def test_bad_steps(
    embeddings: Callable[[np.ndarray], np.ndarray], positives: list[list[int]], step: int, message: str
) -> None:
    policy = Policy(30)
    environment = build(policy)
    with pytest.raises(ValueError, match=message):
        environment.step(embeddings(policy.all()[:2]), positives, policy.encode, step)
    assert policy.asked == [] and not environment.stamps.any()


@pytest.mark.parametrize(
    ("texts", "ids", "message"),
    [
        ([], None, "corpus is empty"),
        (["a", "b"], ["x", "x"], "document id 'x' appears twice"),
        (["a", "b"], ["x"], "2 documents have 1 ids"),
    ],
)
def test_bad_corpora(texts: list[str], ids: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Environment.build(texts, lambda t: np.eye(2)[: len(t)], EnvironmentSettings(), ids=ids, progress=False)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.eye(3), r"one row for each of 2 texts, got shape \(3, 3\)"),
        (np.full((2, 2), np.nan), "the row of 'a' has norm nan"),
        (np.array([[1.0, 0.0], [3.0, 4.0]]), "the row of 'b' has norm 5"),
    ],
)
def test_bad_encoders(vectors: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Environment.build(["a", "b"], lambda texts: vectors, EnvironmentSettings(), progress=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget": -1}, "budget must be an integer >= 0, got -1"),
        ({"candidates": 0}, "candidates must be an integer >= 1, got 0"),
        ({"neighbours": 1.5}, "neighbours must be an integer >= 0, got 1.5"),
        ({"refresh": "some"}, "refresh must be one of .*'neighbourhood'.*, got 'some'"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnvironmentSettings(**fields)
