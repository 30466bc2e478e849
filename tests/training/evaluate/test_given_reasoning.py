"""What an agent knows, what is left to find, and the command that measures it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from searchr3_embed import ReasoningEmbedder
from training.data.beir import BeirData, read_beir
from training.evaluate import given_reasoning as command
from training.evaluate.given_reasoning import CONCATENATED, ENCODER, GIVEN, THINKING, Known
from training.evaluate.metrics import NDCG, RECALL

DOCUMENTS = {
    "a": ("Rhine", "The Rhine is a river. It leaves Lake Constance near Stein. It is long."),
    "b": ("Lake Constance (lake)", "A lake at the foot of the Alps."),
    "c": ("Bread", "Flour and water."),
    "d": ("Bank", "Interest rates."),
    "e": ("Glacier", "Ice moves slowly downhill."),
}
QUERIES = {"q1": "which lake does the river leave", "q2": "what is bread", "q3": "banks and ice", "q4": "a lake"}
QRELS = {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}, "q3": {"d": 1, "e": 1}, "q4": {"b": 1, "a": 0}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "lakes"
    path.mkdir()
    corpus = [{"_id": name, "title": title, "text": text} for name, (title, text) in DOCUMENTS.items()]
    queries = [{"_id": name, "text": text} for name, text in QUERIES.items()]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = [f"{query}\t{document}\t{grade}" for query, row in QRELS.items() for document, grade in row.items()]
    (path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_bridge_is_the_sentence_that_names_the_other_document(folder: Path) -> None:
    data = read_beir(folder)
    # q3's documents do not name one another, and the others have one answer.
    facts = command.known_facts(data, command.titles_of(folder))
    assert facts == {"q1": Known("a", "It leaves Lake Constance near Stein.")}
    bare = command.known_facts(data, {})
    assert bare == {"q1": Known("a", data.documents["a"]), "q3": Known("d", data.documents["d"])}


def test_the_command_measures_what_is_left_to_find(
    folder: Path, mini_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert command.main(["--model", str(mini_checkpoint), "--data", str(folder), "--out", str(out), "--quiet"]) == 0
    found = json.loads(out.read_text())["lakes"]
    assert found["questions"] == 1 and found["left_out"] == 3 and found["words_per_question"] == 6
    assert found["round_trip"]["ids_largest_difference"] < 1e-5
    printed = capsys.readouterr().out
    assert "lakes: 1 questions (3 without such words left out)" in printed and f"| {GIVEN} |" in printed

    # By hand: the place of b among all documents but the known one.
    embedder = ReasoningEmbedder(mini_checkpoint, device="cpu")
    data = read_beir(folder)
    names = [name for name in data.documents if name != "a"]
    documents = embedder.encode_document([data.documents[name] for name in names])
    text, words = QUERIES["q1"], "It leaves Lake Constance near Stein."
    vectors = {
        ENCODER: embedder.encode_query(text, reason=False),
        CONCATENATED: embedder.encode_query(f"{text} {words}", reason=False),
        THINKING: embedder.encode_query(text),
        GIVEN: embedder.encode_query(text, reasoning=words),
    }
    for row, vector in vectors.items():
        scores = documents @ vector
        place = 1 + int(np.sum(scores > scores[names.index("b")]))
        assert found["rows"][row][NDCG] == pytest.approx(1 / np.log2(place + 1), abs=1e-4)
        assert found["rows"][row][RECALL] == 1


def test_what_cannot_be_measured_is_refused(
    folder: Path, mini_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(mini_checkpoint), "--quiet"]
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq2\tc\t1\n", encoding="utf-8")
    for arguments, named in (
        (["--data", str(folder)], "no question has two answering documents"),
        (["--data", str(folder), "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--data", str(tmp_path / "none")], "not a folder"),
    ):
        assert command.main([*model, *arguments]) == 2
        assert named in capsys.readouterr().err


def test_the_known_document_is_not_found_again() -> None:
    data = BeirData("x", {"a": "1", "b": "2"}, {"q": "?"}, {"q": {"a": 1, "b": 1}})
    facts = {"q": Known("a", "1")}
    rest = command._without_known(data, facts)
    assert rest.qrels == {"q": {"b": 1}} and data.qrels == {"q": {"a": 1, "b": 1}}
    scores = command._scores(rest, np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.5, 0.0]]), [0])
    assert scores["q"][NDCG] == 1
