"""What training keeps apart, as sets to evaluate on: the same queries, all their answers, the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.toy_set import write_beir
from training.data import held_out
from training.data.beir import read_beir
from training.data.held_out import split_held_out
from training.data.reading import load


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for source in ("alpha", "beta"):
        rows = [
            {
                "query": f"{source} what is {i % 40}",
                "positives": [f"{source} it is {i}", f"{source} or {i}\n\tor more"],
            }
            for i in range(60)
        ]
        (folder / f"{source}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--source", "alpha", "beta", "--one-in", "4", "--out", str(out), *more]


def test_the_sets_hold_what_training_never_sees(data: Path, tmp_path: Path) -> None:
    assert held_out.main(arguments(data, tmp_path / "sets", "--others", "7")) == 0
    loaded = load({"alpha": 1, "beta": 1}, data).sources
    for source, records in loaded.items():
        training, apart = split_held_out(records, 4, 60)
        found = read_beir(tmp_path / "sets" / source)
        assert set(found.queries.values()) == {record.query for record in apart}
        assert not set(found.queries.values()) & {record.query for record in training}
        answers = {(record.query, text) for record in apart for text in record.positives}
        assert answers == {
            (found.queries[query], found.documents[name]) for query, names in found.qrels.items() for name in names
        }
        others = set(found.documents.values()) - {text for _, text in answers}
        assert len(others) == 7 and others <= {text for record in training for text in record.positives}


def test_the_same_command_writes_the_same_sets(data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert held_out.main(arguments(data, tmp_path / name, "--others", "5")) == 0
    assert held_out.main(arguments(data, tmp_path / "three", "--others", "5", "--seed", "1")) == 0
    one, two, three = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "beta").iterdir()}
        for name in ("one", "two", "three")
    )
    assert one == two and one["queries.jsonl"] == three["queries.jsonl"] and one != three


def test_beir_folders_keep_their_names(tmp_path: Path) -> None:
    sources = []
    for name in ("one", "two"):
        folder = write_beir(tmp_path / name, zipped=False)
        (folder / "qrels.tsv").rename(folder / "qrels_train.tsv")
        # Records of an earlier source are not repeated, so the queries of the two differ.
        queries = folder / "queries.jsonl"
        queries.write_text(queries.read_text().replace('"text": "', f'"text": "{name} '))
        sources.append(f"{folder}:train")
    assert held_out.main(["--source", *sources, "--one-in", "1", "--out", str(tmp_path / "sets")]) == 0
    for name in ("one", "two"):
        assert {text.split()[0] for text in read_beir(tmp_path / "sets" / name).queries.values()} == {name}


@pytest.mark.parametrize(
    "more, message",
    [
        (["--source", "gamma"], "gamma"),
        (["--source", "alpha", "../data/alpha.jsonl"], "two sources have one name: alpha, ../data/alpha.jsonl"),
        (["--one-in", "0"], "--one-in must be an integer >= 1, got 0"),
        (["--others", "-1"], "--others must be an integer >= 0, got -1"),
        (["--one-in", "1000000"], "no source has a held-out query; --one-in 1000000 keeps too few"),
    ],
)
def test_bad_input_says_what_is_wrong(
    more: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert held_out.main(arguments(data, tmp_path / "sets", *more)) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "sets").exists()
