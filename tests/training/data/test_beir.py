"""Which queries of a BEIR-layout folder count as evaluation queries; reading is tested with the evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.data.beir import DataError, evaluation_queries

TEXTS = {"1": "in train only", "2": "in train and dev", "3": "in test", "4": "nowhere judged"}


def write_queries(folder: Path) -> Path:
    folder.mkdir()
    rows = [json.dumps({"_id": i, "text": text}) + "\n" for i, text in TEXTS.items()]
    (folder / "queries.jsonl").write_text("".join(rows))
    return folder


@pytest.mark.parametrize("nested", [True, False])
def test_all_but_what_only_a_train_split_judges(tmp_path: Path, nested: bool) -> None:
    folder = write_queries(tmp_path / "set")
    splits = {"train": "1\tx\t1\n2\tx\t1\n", "dev": "query-id\tcorpus-id\tscore\n2\tx\t1\n", "test": "3\tx\t1\n"}
    flat = {"train": "qrels_train.tsv", "dev": "qrels_dev.tsv", "test": "qrels.tsv"}
    for split, lines in splits.items():
        path = folder / ("qrels" if nested else ".") / (f"{split}.tsv" if nested else flat[split])
        path.parent.mkdir(exist_ok=True)
        path.write_text(lines)
    assert evaluation_queries(folder) == [TEXTS["2"], TEXTS["3"], TEXTS["4"]]


def test_all_without_judgements(tmp_path: Path) -> None:
    assert evaluation_queries(write_queries(tmp_path / "set")) == list(TEXTS.values())


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"queries\.jsonl or queries\.jsonl\.gz is missing"):
        evaluation_queries(tmp_path)
    (write_queries(tmp_path / "set") / "queries.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"queries\.jsonl:1: '_id' must be a string"):
        evaluation_queries(tmp_path / "set")
