"""The table of what adapting gains: cells that are there are not computed again."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks import adapt
from tests.adapt import small_corpus


def write_set(folder: Path) -> list[str]:
    """A set of the name of a real one, half of it to train with."""
    pairs, documents = small_corpus.pairs(40), small_corpus.documents(40)
    test, eval_folder = pairs[:20], folder / "eval" / "scifact"
    eval_folder.mkdir(parents=True)
    (eval_folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": name, "title": "", "text": text}) + "\n" for name, text in documents.items())
    )
    (eval_folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{number}", "text": text}) + "\n" for number, (text, _) in enumerate(test))
    )
    lines = [f"q{number}\t{name}\t1\n" for number, (_, name) in enumerate(test)]
    (eval_folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    (folder / "train").mkdir()
    with gzip.open(folder / "train" / "scifact.jsonl.gz", "wt") as file:
        for question, name in pairs[10:]:  # ten are questions of the test: they are left out
            file.write(json.dumps({"query": question, "positives": [documents[name]]}) + "\n")
    return ["--data", str(folder / "eval"), "--train-records", str(folder / "train"), "--sets", "scifact"]


def test_cells_are_kept(
    thinker_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*write_set(tmp_path), "--model", str(thinker_checkpoint), "--minutes", "0.005"]
    options += ["--out", str(tmp_path / "out"), "--rows", adapt.ENCODER, "projection"]
    assert adapt.main(options) == 0, capsys.readouterr().err
    first = capsys.readouterr().out
    cells = json.loads((tmp_path / "out" / "adapt.json").read_text())["cells"]
    assert [cell["row"] for cell in cells] == [adapt.ENCODER, "projection"]
    assert {cell["training_questions"] for cell in cells} == {20} and {cell["excluded"] for cell in cells} == {10}
    monkeypatch.setattr(adapt, "cell", None)
    assert adapt.main(options) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == first.splitlines()[-4:]
    assert adapt.main([*options, "--data", str(tmp_path / "nowhere"), "--minutes", "1"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_mean_needs_all_sets() -> None:
    cells = [
        {"row": adapt.ENCODER, "set": "scifact", "ndcg@10": 0.5, "seconds": 1.0},
        {"row": adapt.ENCODER, "set": "cosqa", "ndcg@10": 0.7, "seconds": 3.0},
        {"row": adapt.ALL_WEIGHTS, "set": "cosqa", "ndcg@10": 0.9, "seconds": 9.0},
        {"row": adapt.ADAPTER, "set": "cosqa", "missing": "pip install it"},
    ]
    text = adapt.table(cells, ["scifact", "cosqa"])
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "0.5000" in rows[adapt.ENCODER] and "0.6000" in rows[adapt.ENCODER] and "| 2" in rows[adapt.ENCODER]
    assert rows[adapt.ALL_WEIGHTS].count(" - ") == 2
    assert "pip install it" in text
