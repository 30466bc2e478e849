"""The benchmarks run, agree with their references on small checkpoints, and refuse to time what does not agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import fidelity, peers
from searchr3_embed import ReasoningEmbedder
from tests.training.toy_set import DOCUMENTS, QUERIES, write_beir
from training.data.lines import DataError

TEXTS = [
    "tides",
    "how does a violin make a sound and why is it louder than its strings alone",
    "bread",
    "which river flows through paris",
    "what are the symptoms of a common cold in adults and how long do they last",
    "csv column sum",
    "glacier valleys",
]


@pytest.fixture(scope="module", params=["mini_checkpoint", "qwen2_checkpoint"])
def embedder(request: pytest.FixtureRequest) -> Iterator[ReasoningEmbedder]:
    """Absolute and rotary positions."""
    yield ReasoningEmbedder(request.getfixturevalue(request.param), device="cpu", on_truncate="ignore")


def test_fidelity_holds(embedder: ReasoningEmbedder) -> None:
    result = fidelity.check(embedder, TEXTS, batch_sizes=(1, 3))
    assert result["passed"], result
    assert result["one_pass_against_two"]["lowest_cosine"] > 0.99999
    assert [row["batch_size"] for row in result["batch_independence"]] == [1, 3]
    table = fidelity.render(result)
    assert "100.00%" in table and table.count("\n") == 7


@pytest.mark.parametrize("kind", ["thinker_checkpoint", "language_model_thinker_checkpoint"])
def test_fidelity_of_an_encoder_with_a_thinker(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(request.getfixturevalue(kind))
    ours = ReasoningEmbedder(folder, device="cpu", on_truncate="ignore")
    half = ReasoningEmbedder(folder, device="cpu", model_kwargs={"dtype": torch.bfloat16})
    # A random encoder's vectors lie closer together than a trained one's; what is wrong is far below.
    monkeypatch.setattr(fidelity, "LEAST_COSINE_BFLOAT16", 0.999)
    result = fidelity.check(ours, TEXTS, batch_sizes=(1, 3), half=half)
    assert result["passed"], result
    assert result["encoder"]["largest_difference"] <= 1e-5
    assert 0.999 < result["encoder"]["lowest_cosine_bfloat16"] < 1
    assert "bfloat16" in fidelity.render(result)
    assert ours.question_side is not None
    # Moved by another P, the two passes differ.
    stored = ours.question_side.projection
    traces = ours.reason(TEXTS)
    monkeypatch.setattr(ours, "reason", lambda *args, **options: traces)
    ours.question_side.projection = -stored
    assert fidelity.one_pass_against_two(ours, TEXTS)["lowest_cosine"] < fidelity.LEAST_COSINE


def test_generate_writes_the_same_tokens(embedder: ReasoningEmbedder) -> None:
    """Left padding is safe in the reference: its tokens are ours, for absolute positions too."""
    # Every word as a text of its own too: of so many, a random model ends some within the budget.
    texts = TEXTS + sorted({word for text in [*TEXTS, *QUERIES.values()] for word in text.split()})
    ids, vectors = peers.generate_then_embed(embedder.causal_lm, embedder.conversation, texts, batch_size=16)
    traces = embedder.reason(texts, batch_size=16)
    assert ids == [trace.reasoning_ids for trace in traces]
    assert len({len(row) for row in ids}) > 1  # rows of different lengths, or the test shows little
    np.testing.assert_allclose(vectors, fidelity.embeddings(traces), atol=1e-5)


def test_generate_without_budget(embedder: ReasoningEmbedder) -> None:
    ids, vectors = peers.generate_then_embed(embedder.causal_lm, embedder.conversation, TEXTS, 4, budget=0)
    assert ids == [[]] * len(TEXTS)
    np.testing.assert_allclose(vectors, embedder.encode_query(TEXTS, max_reasoning_tokens=0), atol=1e-5)


def test_a_failed_check_is_reported(
    tmp_path: Path, mini_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fidelity, "forward_states", lambda model, turns: np.ones((len(turns), 32), dtype=np.float32))
    command = ["--queries", str(write_beir(tmp_path / "toy")), "--model", str(mini_checkpoint), "--count", "3"]
    assert fidelity.main(command) == 1
    assert '"passed": false' in capsys.readouterr().out


def test_commands(tmp_path: Path, mini_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = str(write_beir(tmp_path / "toy"))
    common = ["--queries", toy, "--model", str(mini_checkpoint), "--device", "cpu"]
    assert fidelity.main([*common, "--count", "4", "--out", str(tmp_path / "fidelity.json")]) == 0
    assert json.loads((tmp_path / "fidelity.json").read_text())["passed"]


def test_bad_input(tmp_path: Path, mini_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = str(write_beir(tmp_path / "toy"))
    model = ["--model", str(mini_checkpoint)]
    assert fidelity.main(["--queries", toy, *model]) == 2
    assert "200 queries wanted, but the sets hold only 4" in capsys.readouterr().err
    assert fidelity.main(["--queries", toy, "--count", "2", "--model", "no-such-model"]) == 2
    assert "no-such-model" in capsys.readouterr().err


def test_queries_are_drawn_from_all_sets_alike(tmp_path: Path) -> None:
    write_beir(tmp_path / "a")
    assert set(fidelity.sample_queries([tmp_path], 4)) == set(QUERIES.values())
    assert fidelity.sample_queries([tmp_path], 3) == fidelity.sample_queries([tmp_path], 3)
    with pytest.raises(DataError, match="5 queries wanted"):
        fidelity.sample_queries([tmp_path], 5)
    assert len(DOCUMENTS) == 6
