"""``searchr3 search``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.search.passages import Passage
from tests.cli.command import Command, Run, stdin


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "guide.md").write_text("# Guide\n\n## Install\n\nRun pip install it.\n\n## Use\n\nImport it.\n")
    (folder / "notes.txt").write_text("The river flows through Paris.\n")
    return folder


def test_search_a_folder(command: Command, docs: Path) -> None:
    code, out, err = command("search", docs, "-k", "2", "how do i install it?")
    assert code == 0
    assert err.startswith(f"3 passages of {docs}, indexed in ")
    lines = out.strip().splitlines()
    assert lines[0] == "question:  how do i install it?"
    assert lines[1].startswith("reasoning: ")
    assert lines[2].startswith("  1. ") and lines[4].startswith("  2. ") and not any("  3. " in line for line in lines)
    assert "to think and embed" in lines[-1]
    hits = {"guide.md:5  (Guide > Install)", "guide.md:9  (Guide > Use)", "notes.txt:1"}
    assert {line.split("  ", 2)[2] for line in (lines[2], lines[4])} <= hits


def test_search_finds_a_passage_by_its_own_words(command: Command, docs: Path, tmp_path: Path) -> None:
    """Without thinking, question and document are the same turn, so the score of the same text is 1."""
    (tmp_path / "corpus.jsonl").write_text(
        '{"text": "alpha"}\n{"id": "b", "text": "the river flows"}\n{"text": "c d"}\n'
    )
    code, out, _ = command("search", tmp_path / "corpus.jsonl", "the river flows", "--no-reason", "--json")
    assert code == 0
    (answer,) = map(json.loads, out.splitlines())
    assert "reasoning" not in answer
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    assert answer["hits"][0] | {"score": None} == {
        "rank": 1,
        "score": None,
        "id": "b",
        "title": "",
        "text": "the river flows",
    }
    assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_search_encodes_only_what_is_new(command: Command, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = command("search", docs, "paris", "--json")
    encoded: list[str] = []
    original = ReasoningEmbedder.encode_document

    def watched(self: ReasoningEmbedder, texts: list[str], **options: Any) -> Any:
        encoded.extend(texts)
        return original(self, texts, **options)

    monkeypatch.setattr(ReasoningEmbedder, "encode_document", watched)
    second = command("search", docs, "paris", "--json")
    assert "vectors from the cache" in second.err and not encoded

    def hits(run: Run) -> Any:
        # Another batch may round a score's last digit differently.
        return [{**hit, "score": pytest.approx(hit["score"], abs=1e-5)} for hit in json.loads(run.out)["hits"]]

    assert json.loads(second.out)["hits"] == hits(first)

    (docs / "notes.txt").write_text("The river flows through London.\n")
    third = command("search", docs, "paris", "--json")
    assert encoded == ["notes.txt The river flows through London."]
    assert "(1 encoded, 2 from the cache)" in third.err

    for path in command.cache.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    encoded.clear()
    fourth = command("search", docs, "paris", "--json")
    assert fourth.code == 0 and len(encoded) == 3
    assert "searchr3: warning: The cache file" in fourth.err
    assert json.loads(fourth.out)["hits"] == hits(third)


def test_search_reads_questions_from_stdin(command: Command, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, "  where? \n\nwhy é?\n".encode())
    code, out, _ = command("search", docs / "guide.md", "first", "-", "--json")
    assert code == 0
    assert [json.loads(line)["question"] for line in out.splitlines()] == ["first", "where?", "why é?"]


def test_search_stdlib(command: Command, small_stdlib: list[Passage]) -> None:
    code, out, err = command("search", "--stdlib", "parse json", "-k", "100")
    assert code == 0 and err.startswith("6 passages of the standard library, indexed in ")
    assert all(passage.id in out for passage in small_stdlib)
