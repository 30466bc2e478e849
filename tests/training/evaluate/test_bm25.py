"""The lexical yardstick."""

from __future__ import annotations

from pathlib import Path

from tests.training.toy_set import write_beir
from training.data.beir import read_beir
from training.evaluate.bm25 import bm25_rows
from training.evaluate.metrics import rank


def test_bm25_finds_the_obvious_document(tmp_path: Path) -> None:
    data = read_beir(write_beir(tmp_path / "toy"))
    rows, *seconds = bm25_rows(list(data.documents.values()), [*data.queries.values()][:3] + ["of the"])
    assert [list(data.documents)[int(row.argmax())] for row in rows[:3]] == ["d1", "d2", "d3"]
    assert not rows[3].any()  # stop words alone match nothing
    assert min(seconds) >= 0


def test_bm25_leaves_out_documents_without_a_common_word(tmp_path: Path) -> None:
    data = read_beir(write_beir(tmp_path / "toy"))
    run = rank(data, bm25_rows(list(data.documents.values()), list(data.queries.values()))[0], True)
    assert "d6" not in run["q2"] and set(run["q2"]) == {"d2", "d5"}
