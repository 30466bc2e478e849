"""reason="auto": thinks about exactly the queries that the gate picks, and the gate is found from training queries."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from benchmarks import adaptive as benchmark
from searchr3_embed import ReasoningEmbedder, decoding
from searchr3_embed.adaptive import GATE_FILE, Gate
from training import calibrate, evaluate
from training.beir import DataError
from training.data import Record, write_records
from training.report import NDCG

QUERIES = ["how do glaciers move", "ships", "what carves a valley?", "", "the wind in the sand"]


@pytest.fixture
def gated(mini_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose gate picks about half of the queries."""
    folder = tmp_path / "gated"
    shutil.copytree(mini_checkpoint, folder)
    embedder = ReasoningEmbedder(folder, device="cpu")
    direction = np.random.default_rng(0).normal(size=embedder.get_embedding_dimension())
    expected = embedder.encode_query(QUERIES, reason=False) @ direction
    # Between two queries, so that rounding decides nothing.
    Gate(tuple(direction.tolist()), 0.25, float(np.sort(expected)[1:3].mean()) + 0.25).save(folder)
    return folder


def test_auto_thinks_about_what_the_gate_picks_and_nothing_else(gated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = ReasoningEmbedder(gated, device="cpu", on_truncate="ignore")
    direct, thought = embedder.encode_query(QUERIES, reason=False), embedder.encode_query(QUERIES)
    picked = embedder.gate.thinks(torch.from_numpy(direct)).numpy()  # type: ignore[union-attr]
    assert 0 < picked.sum() < len(QUERIES)
    asked: list[int] = []
    think = decoding.think

    def counted(model: Any, prompts: Any, **options: Any) -> Any:
        asked.append(len(prompts))
        return think(model, prompts, **options)

    monkeypatch.setattr(decoding, "think", counted)
    found = embedder.encode_query(QUERIES, reason="auto")
    assert asked == [picked.sum()]
    np.testing.assert_allclose(found, np.where(picked[:, None], thought, direct), atol=1e-6)
    # one by one, through encode, and after saving: the same
    np.testing.assert_allclose([embedder.encode_query(q, reason="auto") for q in QUERIES], found, atol=1e-5)
    np.testing.assert_array_equal(embedder.encode(QUERIES, reason="auto"), found)
    embedder.save(str(gated.parent / "again"))
    again = ReasoningEmbedder(gated.parent / "again", device="cpu")
    assert again.gate == embedder.gate == copy.deepcopy(embedder).gate
    np.testing.assert_allclose(again.encode_query(QUERIES, reason="auto"), found, atol=1e-5)


@pytest.mark.parametrize(("threshold", "mode"), [(1e9, False), (-1e9, True)])
def test_a_gate_that_picks_none_or_all_is_never_or_always(gated: Path, threshold: float, mode: bool) -> None:
    embedder = ReasoningEmbedder(gated, device="cpu")
    assert embedder.gate is not None
    embedder.gate = dataclasses.replace(embedder.gate, threshold=threshold)
    expected = embedder.encode_query(QUERIES, reason=mode)
    np.testing.assert_array_equal(embedder.encode_query(QUERIES, reason="auto"), expected)
    assert embedder.encode_query([], reason="auto").shape == (0, expected.shape[1])


async def _once(embedder: ReasoningEmbedder, query: str) -> np.ndarray:
    return await embedder.aencode_query(query, reason="auto")


def test_auto_through_the_other_doors(gated: Path) -> None:
    import asyncio

    embedder = ReasoningEmbedder(gated, device="cpu")
    expected = embedder.encode_query(QUERIES[0], reason="auto")
    np.testing.assert_allclose(asyncio.run(_once(embedder, QUERIES[0])), expected, atol=1e-5)
    langchain = pytest.importorskip("langchain_searchr3")
    ours = langchain.SearchR3Embeddings(model=str(gated), device="cpu", reason_queries="auto")
    np.testing.assert_allclose(ours.embed_query(QUERIES[0]), expected, atol=1e-5)
    llama = pytest.importorskip("llama_index.embeddings.searchr3")
    theirs = llama.SearchR3Embedding(model_name=str(gated), device="cpu", reason_queries="auto")
    np.testing.assert_allclose(theirs.get_query_embedding(QUERIES[0]), expected, atol=1e-5)


def test_a_checkpoint_without_gate_says_what_to_do(mini_checkpoint: Path) -> None:
    embedder = ReasoningEmbedder(mini_checkpoint, device="cpu")
    assert embedder.gate is None
    with pytest.raises(ValueError, match=r"auto.*adaptive\.json.*training\.calibrate"):
        embedder.encode_query(QUERIES, reason="auto")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no gate"),
        ("[]", "no gate"),
        ('{"weights": [], "bias": 0, "threshold": 0}', "0 weights"),
        ('{"weights": [1], "bias": 0}', "threshold"),
        ('{"weights": ["a"], "bias": 0, "threshold": 0}', "finite"),
        ('{"weights": [NaN], "bias": 0, "threshold": 0}', "finite"),
        ('{"weights": [1, 2, 3], "bias": 0, "threshold": 0}', "3 weights.*dimensions"),
    ],
)
def test_a_damaged_gate_is_refused(gated: Path, content: str, message: str) -> None:
    (gated / GATE_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ReasoningEmbedder(gated, device="cpu")


@given(arrays.arrays(np.float32, (5, 4), elements=st.floats(-1, 1, width=16)), st.integers(1, 4))
def test_rank_quality_is_dcg_over_the_whole_list(vectors: np.ndarray, answers: int) -> None:
    scores = vectors @ vectors[0]
    positives = list(range(answers))
    # Ties go to the positives, as nothing ranks above them.
    order = sorted(range(5), key=lambda row: (-scores[row], row not in positives))
    gain = sum(1 / np.log2(place + 2) for place, row in enumerate(order) if row in positives)
    best = sum(1 / np.log2(place + 2) for place in range(answers))
    assert calibrate.rank_quality(vectors[:1], vectors, [positives])[0] == pytest.approx(gain / best)


def test_the_fit_finds_what_the_gain_depends_on() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(400, 6))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    gained = np.where(embeddings[:, 2] > 0.3, 0.5, -0.5) + rng.normal(scale=0.1, size=400)
    gate, found = calibrate.fit(embeddings, gained, ["a"] * 300 + ["b"] * 100, seed=0)
    assert found["correlation"] > 0.7 and found["gain"] > 0 > found["gain_of_all"]
    picked = gate.thinks(torch.from_numpy(embeddings)).numpy()
    assert 0 < picked.sum() < 400 and gained[picked].mean() > 0.2 > gained[~picked].mean()
    assert gate == calibrate.fit(embeddings, gained, ["a"] * 300 + ["b"] * 100, seed=0)[0]
    with pytest.raises(DataError, match="40.*39"):
        calibrate.fit(embeddings[:39], gained[:39], ["a"] * 39, seed=0)


def test_calibrate_evaluate_and_benchmark_in_a_row(
    mini_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(mini_checkpoint, folder)
    rows = [Record(f"query about {i} ships", (f"{i} ships sail on sea {i % 7}",), (), "ships") for i in range(48)]
    write_records(tmp_path / "data" / "ships.jsonl", rows)
    command = ["--model", str(folder), "--data", str(tmp_path / "data"), "--device", "cpu"]
    assert calibrate.main(command) == 0
    assert "queries kept apart" in capsys.readouterr().out
    first = (folder / GATE_FILE).read_text(encoding="utf-8")
    assert calibrate.main(command) == 0 and (folder / GATE_FILE).read_text(encoding="utf-8") == first

    beir = tmp_path / "eval" / "ships"
    beir.mkdir(parents=True)
    documents = [{"_id": f"d{i}", "title": "", "text": f"{i} ships sail on sea {i % 7}"} for i in range(9)]
    questions = [{"_id": f"q{i}", "text": f"which {i} ships?"} for i in range(6)]
    for name, lines in (("corpus", documents), ("queries", questions)):
        (beir / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(6))
    (beir / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8")
    gate = Gate.load(folder, ReasoningEmbedder(folder, device="cpu").get_embedding_dimension() or 0)
    assert gate is not None
    out = tmp_path / "results"
    results = evaluate.evaluate([f"ours={folder}", f"ours={folder}:auto"], [beir], out=out)
    assert benchmark.main(
        ["--model", str(folder), "--results", str(out), "--data", str(beir), "--timed", "2", "--repeats", "1"]
        + ["--out", str(tmp_path / "curve")]
    ) == 0  # fmt: skip
    found = json.loads((tmp_path / "curve" / "adaptive.json").read_text(encoding="utf-8"))
    # what the curve says of the gate is what the model does when it is asked to decide
    assert found["gate"][NDCG] == pytest.approx(results["models"]["ours:auto"]["mean"][NDCG])
    assert found["never"][NDCG] == pytest.approx(results["models"]["ours:direct"]["mean"][NDCG])
    assert found["always"][NDCG] == pytest.approx(results["models"]["ours:reason"]["mean"][NDCG])
    assert (tmp_path / "curve" / "adaptive.png").stat().st_size > 1000
    assert "above the straight line" in (tmp_path / "curve" / "adaptive.md").read_text(encoding="utf-8")


def test_points_of_the_curve() -> None:
    expected = {"a": np.array([3.0, 1.0]), "b": np.array([2.0, 0.0, -1.0, -2.0])}
    direct = {"a": np.zeros(2), "b": np.zeros(4)}
    reason = {"a": np.array([1.0, 0.0]), "b": np.array([0.0, 0.0, 0.0, -1.0])}
    found = benchmark.curve(expected, direct, reason, 1.5, (10.0, 30.0))
    # each query counts by the size of its set: 1/4 in a, 1/8 in b
    assert found["never"][NDCG] == 0 and found["always"][NDCG] == pytest.approx(0.25 - 0.125)
    assert found["gate"]["share"] == pytest.approx(0.25 + 0.125) and found["gate"][NDCG] == pytest.approx(0.25)
    assert found["gate"]["ms"] == pytest.approx(10 + 0.375 * 30)
    line = 0.125 * (0.375 * 30) / 20
    assert found["gate"]["above_line"] == pytest.approx(0.25 - line)
    assert found["share_by_set"] == {"a": 0.5, "b": 0.25}
    assert [row["share"] for row in found["points"]] == sorted(row["share"] for row in found["points"])


@pytest.mark.parametrize("case", ["no results", "no reasoning", "no gate", "no folder", "empty folder"])
def test_bad_input(case: str, mini_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    results.mkdir()
    if case in ("no folder", "empty folder"):
        model = "searchr3" if case == "no folder" else str(mini_checkpoint)
        assert calibrate.main(["--model", model, "--data", str(results)]) == 2
        expected = {"no folder": "'?searchr3'?: the gate", "empty folder": "no .jsonl"}[case]
    else:
        if case != "no results":
            modes = ("direct",) if case == "no reasoning" else ("direct", "reason")
            rows = [{"model": f"m:{mode}", "set": "s", "query_id": "q", NDCG: 1.0} for mode in modes]
            (results / "per_query.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        beir = tmp_path / "s"
        beir.mkdir()
        for name, line in (("corpus", {"_id": "d", "text": "x y"}), ("queries", {"_id": "q", "text": "x"})):
            (beir / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
        (beir / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
        command = ["--model", str(mini_checkpoint), "--results", str(results), "--data", str(beir)]
        assert benchmark.main([*command, "--out", str(tmp_path / "out")]) == 2
        expected = {"no results": "no such file", "no reasoning": "are needed", "no gate": "adaptive.json"}[case]
    import re

    assert re.search(expected, capsys.readouterr().err)
