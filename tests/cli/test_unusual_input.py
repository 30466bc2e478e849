"""Arguments, standard input and files as they come: dashes, other encodings, bad lines, nothing at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.cli import main as cli
from searchr3_embed.cli.arguments import CommandError
from tests.cli.command import Command, stdin


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("reason -- -x", ["-x"]),
        ("reason -5", ["-5"]),
        ("reason a --json -- -b --json", ["a", "-b", "--json"]),
        ("search docs -k 3 -- -x", ["docs", "-x"]),
        ("search docs -k 3 q -- -x -- -", ["docs", "q", "-x", "--", "-"]),
        ("search -k 3 -- docs --json", ["docs", "--json"]),
        ("search docs -k 3 -", ["docs", "-"]),
    ],
)
def test_two_dashes_end_the_options(line: str, words: list[str]) -> None:
    assert cli._parse(line.split()).words == words


@pytest.mark.parametrize("line", ["reason -x", "search docs q --oops", "search docs -k 3 q --oops -- -x", "env x"])
def test_unknown_options_say_how_to_give_a_text(line: str) -> None:
    with pytest.raises(CommandError, match="a text that begins with - goes after --|unrecognized arguments: x"):
        cli._parse(line.split())


def test_a_text_that_begins_with_a_dash(command: Command) -> None:
    code, out, _ = command("reason", "-5 degrees", "-6", "--json")
    assert code == 0 and [json.loads(line)["text"] for line in out.splitlines()] == ["-5 degrees", "-6"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "standard input holds no question"),
        (b" \n\n", "standard input holds no question"),
        (b"\x89PNG\r\n", "standard input:1: not UTF-8"),
        (b"\n\0\0\n", "standard input:2: binary"),
        (b"\xff\xfea", "standard input:1: not UTF-16 text"),
    ],
)
def test_standard_input_without_questions(
    command: Command, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    stdin(monkeypatch, data)
    assert message in command.fails("reason", "-")


@pytest.mark.parametrize("form", ["lines", "jsonl"])
@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\x89PNG\r\n", b"\xff\xfea"])
def test_standard_input_without_texts(
    command: Command, monkeypatch: pytest.MonkeyPatch, form: str, data: bytes
) -> None:
    stdin(monkeypatch, data)
    assert "standard input" in command.fails("encode", "-", "--format", form)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_questions_in_any_encoding(command: Command, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stdin(monkeypatch, "häh?\r\n\n \nwas\f?".encode(encoding))
    _, out, _ = command("reason", "-", "--json")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["häh?", "was\f?"]


def test_bad_lines_are_left_out_on_request_only(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"id": null, "text": "rivers"}\n{"text": "caf\xe9"}\n{"text": 3}\n{"text": "taxes"}\n')
    for words in (("encode", path), ("search", path, "what?")):
        assert "x.jsonl:2: not UTF-8" in command.fails(*words)
        code, out, err = command(*words, "--skip-bad", *(["--json"] if words[0] == "search" else []))
        assert code == 0 and f"{path}: 2 bad lines left out, the first: {path}:2: not UTF-8" in err
        found = [json.loads(line) for line in out.splitlines()]
        ids = [record["id"] for record in (found[0]["hits"] if words[0] == "search" else found)]
        assert sorted(ids) == ["1", "4"]
    lines = tmp_path / "x.txt"
    lines.write_bytes(b"one\ncaf\xe9\nthree")
    assert "x.txt:2: not UTF-8" in command.fails("encode", lines)
    code, out, err = command("encode", lines, "--skip-bad")
    assert (code, len(out.splitlines())) == (0, 2) and "1 bad line left out" in err


def test_a_title_is_embedded_as_a_search_does(command: Command, embedder: ReasoningEmbedder, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": 1, "title": "C", "text": "Cats purr."}\n{"text": "no title"}\n')
    _, out, _ = command("encode", path, "--as", "document")
    first, second = map(json.loads, out.splitlines())
    assert (first["title"], first["text"]) == ("C", "Cats purr.") and "title" not in second
    expected = embedder.encode_document(["C Cats purr.", "no title"])
    np.testing.assert_allclose([first["embedding"], second["embedding"]], expected, atol=1e-5)


def test_what_a_record_holds_can_not_speak_to_the_terminal(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"id": "a\x1b[31m", "title": "b\x07\n", "text": "c\x1b]0;d\x07"}))
    code, out, _ = command("search", path, "what?", "--no-reason")
    assert code == 0 and not {"\x1b", "\x07"} & set(out) and "a\\x1b[31m" in out


def test_a_question_under_a_locale_without_utf8(command: Command) -> None:
    word = "où ?".encode().decode("ascii", "surrogateescape")
    _, out, _ = command("reason", word, "--json")
    assert json.loads(out)["text"] == "où ?"
    assert "lone surrogate" in command.fails("reason", "\udce9 alone")
