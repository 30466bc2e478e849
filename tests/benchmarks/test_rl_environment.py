"""The environment's benchmark on a small random checkpoint: it runs, goes on when killed, and counts right."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.rl_environment.agreement import agreement
from benchmarks.rl_environment.policy import Policy, Rollouts
from benchmarks.rl_environment.run import main
from benchmarks.rl_environment.setting import draw
from tests.training.toy_set import DOCUMENTS, QUERIES, write_beir
from training.data.beir import read_beir
from training.data.records import Record, write_records


@pytest.fixture()
def toy(tmp_path: Path) -> list[str]:
    """Arguments for a corpus of the toy set, and records that ask for its documents."""
    folder = write_beir(tmp_path / "toy")
    corpus = list(read_beir(folder).documents.values())
    records = [Record(f"tell me of {text.split()[-1]} {i}", (text,), (), "toy") for i, text in enumerate(corpus)]
    records.append(Record("unanswerable here", ("a document of another corpus",), (), "toy"))
    write_records(tmp_path / "records.jsonl", records)
    return ["--data", str(folder), "--train-records", str(tmp_path / "records.jsonl"), "--device", "cpu"]


def command(toy: list[str], model: Path, out: Path, **options: Any) -> list[str]:
    small = {"steps": 3, "budgets": 2, "queries": 2, "group": 8, "full_every": 2, "save_every": 1} | options
    extra = [text for name, value in small.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return [*toy, "--model", str(model), "--out", str(out), "--learning-rate", "1e-3", *extra]


@pytest.mark.slow
def test_runs_and_goes_on(
    tmp_path: Path, toy: list[str], mini_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = tmp_path / "whole"
    assert main([*command(toy, mini_checkpoint, whole), "--refresh", "all", "impact", "none"]) == 0
    summary = json.loads((whole / "environment.json").read_text())
    assert (whole / "rl_environment.png").stat().st_size > 1000
    assert (whole / "environment.md").read_text() in capsys.readouterr().out
    every, impact, none = summary["environments"]
    assert [row["name"] for row in (every, impact, none)] == ["all", "impact-2", "none"]
    assert every["pearson"] == pytest.approx(1) and every["signs"] == 1 and every["rmse"] < 1e-6
    assert every["refreshed"] == summary["documents"] == len(DOCUMENTS) and impact["refreshed"] == 2
    assert none["refreshed"] == 0 and none["times_less_encoding"] is None
    assert none["rmse"] > every["rmse"]
    assert [row["step"] for row in every["by_step"]] == [2, 3]
    assert [row["documents"] for row in summary["projection"]] == [10**6, 10**8]

    # Killed in its second step, it goes on after the first and finds the same.
    learn, calls = Policy.learn, []

    def kill(policy: Policy, rollouts: Rollouts) -> None:
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        learn(policy, rollouts)

    broken = [*command(toy, mini_checkpoint, tmp_path / "broken"), "--refresh", "all", "impact", "none"]
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "learn", kill)
        with pytest.raises(KeyboardInterrupt):
            main(broken)
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["state-1"]
    assert main(broken) == 0
    again = json.loads((tmp_path / "broken" / "environment.json").read_text())
    for a, b in zip(summary["environments"], again["environments"], strict=True):
        assert [a[key] for key in ("pearson", "signs", "rmse")] == pytest.approx(
            [b[key] for key in ("pearson", "signs", "rmse")], abs=1e-6
        )
    assert main([*broken, "--seed", "1"]) == 2
    assert "holds a run with seed = 0, not 1" in capsys.readouterr().err


def test_agreement_by_hand() -> None:
    nan = float("nan")
    rows = [{"rewards": [0.1, 0.3, 0.2, 0.5, 0.5, 0.5], "true": [0.1, 0.3, 0.4, 0.5, 0.5, 0.5]}]
    found = agreement(rows, 3)
    # Group 1: means 0.2 and 0.2667; the third is on the mean in one and above it in the other. Group 2 teaches nothing
    # and is left out: else a policy that writes one thing only would agree by itself.
    assert found["signs"] == pytest.approx(2 / 3) and found["rollouts"] == 6 and found["varied"] == 0.5
    assert found["rmse"] == pytest.approx(np.sqrt(0.04 / 6))
    failed = [{"rewards": [0.1, nan, 0.2], "true": [0.1, nan, 0.2]}]
    assert agreement(failed, 3) | {"pearson": 1.0} == {
        "pearson": 1, "signs": 1, "varied": 1, "rmse": 0, "rollouts": 2,
    }  # fmt: skip
    same = agreement([{"rewards": [0.1, 0.2, 0.3], "true": [0.5, 0.5, 0.5]}], 3)
    assert np.isnan(same["signs"]) and same["varied"] == 0
    assert agreement([{"rewards": [nan] * 3, "true": [nan] * 3}], 3)["rollouts"] == 0


def test_test_queries_are_never_drawn(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "toy")
    corpus = list(read_beir(folder).documents.values())
    records = [Record(query, (corpus[0],), (), "toy") for query in QUERIES.values()]
    write_records(tmp_path / "records.jsonl", [*records, Record("something of our own", (corpus[1],), (), "toy")])
    documents, chosen, number = draw(folder, tmp_path / "records.jsonl", 2, 5, seed=0)
    assert {record.query for record in chosen} == {"something of our own"} and len(chosen) == 5
    assert len(documents) == 2 and documents[number[corpus[1]]] == corpus[1]


def test_bad_input(tmp_path: Path, toy: list[str], mini_checkpoint: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main(command(toy, mini_checkpoint, out, documents=1)) == 2
    assert "--documents 1: the 8 queries have 6 positives" in capsys.readouterr().err
    assert main(command(toy, Path("no-such-model"), out)) == 2
    assert "no-such-model" in capsys.readouterr().err
    foreign = tmp_path / "foreign.jsonl.gz"
    with gzip.open(foreign, "wt") as file:
        file.write('{"query": "q", "positives": ["elsewhere"]}\n')
    assert main([*command(toy, mini_checkpoint, out), "--train-records", str(foreign)]) == 2
    assert "no record whose positives are all in" in capsys.readouterr().err
    for option in ({"group": 1}, {"steps": 0}, {"full_every": 0}, {"budgets": -1}):
        with pytest.raises(SystemExit):
            main(command(toy, mini_checkpoint, out, **option))
