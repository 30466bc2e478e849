"""Reading passages from folders, text files and JSONL."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from searchr3_embed.search.passages import (
    CorpusError,
    Passage,
    read_file,
    read_folder,
    read_jsonl,
    read_lines,
    with_title,
)
from training.data.beir import document_text


def test_read_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
    (tmp_path / "sub" / "b.rst").write_text("Plain text.\n")
    (tmp_path / "sub" / ".hidden" / "no.md").write_text("hidden")
    (tmp_path / ".no.md").write_text("hidden")
    (tmp_path / "a.md").write_bytes("\ufeff# Héading\r\n\r\ntext\r\n".encode())
    (tmp_path / "code.py").write_text("no = True")
    (tmp_path / "latin.TXT").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "windows.txt").write_bytes("\x0cé".encode("utf-16"))
    (tmp_path / "empty.txt").write_text("")
    with caplog.at_level(logging.WARNING):
        passages = read_folder(tmp_path)

    assert passages == [
        Passage("a.md:3", "Héading", "text"),
        Passage("latin.TXT:1", "latin.TXT", "café"),
        Passage("windows.txt:1", "windows.txt", "\x0cé"),
        Passage("sub/b.rst:1", "b.rst", "Plain text."),
    ]
    assert passages[0].content == "Héading text"
    assert caplog.messages == [f"{tmp_path}: 1 file not in UTF-8, some letters may be wrong: latin.TXT"]
    assert read_folder(tmp_path, suffixes=[".py"])[0].id == "code.py:1"


@pytest.mark.skipif(os.name != "posix", reason="links, pipes and file names of POSIX")
def test_what_can_not_be_read_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "good.txt").write_text("The river flows.")
    (tmp_path / "a binary.txt").write_bytes(b"\0")
    (tmp_path / "dangling.md").symlink_to("/nowhere/gone.md")
    (tmp_path / "loop.md").symlink_to("loop.md")
    (tmp_path / "again").symlink_to(".")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "s.txt"))
    odd = os.fsencode(tmp_path) + b"/odd \xff\n\x1b[31m.txt"
    Path(os.fsdecode(odd)).write_text("Still text.")
    with caplog.at_level(logging.WARNING):
        passages = read_folder(tmp_path)

    assert [passage.text for passage in passages] == ["The river flows.", "Still text."]
    assert passages[1].id == "odd \\udcff\\n\\x1b[31m.txt:1" and passages[1].content.isascii()
    (message,) = caplog.messages
    assert "6 files left out: a binary.txt (binary), again (a link to a folder), dangling.md (No such" in message
    assert message.endswith(" ...") and "\n" not in message

    (tmp_path / "good.txt").unlink()
    Path(os.fsdecode(odd)).unlink()
    with pytest.raises(CorpusError, match="no text in this folder .*; 6 files left out: a binary.txt"):
        read_folder(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_can_not_be_opened_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "good.txt").write_text("text")
    (tmp_path / "locked").mkdir(0)
    with caplog.at_level(logging.WARNING):
        assert len(read_folder(tmp_path)) == 1
    assert "1 file left out: locked (Permission denied)" in caplog.text


def test_read_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("one\n\ntwo")
    assert read_file(path) == [Passage("notes.txt:1", "notes.txt", "one\n\ntwo")]
    path.write_text("\n")
    with pytest.raises(CorpusError, match="no text"):
        read_file(path)
    with pytest.raises(CorpusError, match="nowhere.txt"):
        read_file(tmp_path / "nowhere.txt")
    path.write_bytes(b"\0")
    with pytest.raises(CorpusError, match=r"notes.txt: no text in this file \(binary\)"):
        read_file(path)


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match="no text"):
        read_folder(tmp_path)


def test_read_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"_id": 7, "title": "T", "text": "body"}\n\n'
        b'{"id": "x", "text": ""}\r\n{"text": "T", "title": 3}\n'
    )
    passages = read_jsonl(path)
    assert passages == [Passage("7", "T", "body"), Passage("x", "", ""), Passage("4", "3", "T")]
    assert passages[0].content == "T body"
    assert read_jsonl(io.BytesIO(b'{"q": "why"}'), field="q") == [Passage("1", "", "why")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", ":2: not JSON"),
        ('["a list"]', ":2: expected a JSON object, got list"),
        ('{"title": "x"}', r":2: no field 'text' \(the record has 'title'"),
        ("{}", ":2: no field 'text' .the record has no fields"),
        ('{"text": null}', ":2: field 'text' must be a string, got NoneType"),
        ("[" * 100_000, ":2: not"),
        (r'{"text": "\ud800"}', r":2: field 'text' holds the lone surrogate U\+D800 at character 0"),
        (r'{"id": "\udc00", "text": ""}', ":2: field 'id' holds"),
        ('{"id": ["a"], "text": ""}', r""":2: field 'id' must be a string or a number, got \["a"\]"""),
        ('{"id": true, "text": ""}', ":2: field 'id' must be a string or a number, got true"),
        ('{"id": NaN, "text": ""}', ":2: field 'id' must be a string or a number, got NaN"),
        ('{"title": {}, "text": ""}', ":2: field 'title' must be a string or a number"),
    ],
)
def test_jsonl_errors_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(CorpusError, match="corpus.jsonl" + message):
        read_jsonl(path)


def test_jsonl_that_is_no_file_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nowhere.jsonl"):
        read_jsonl(tmp_path / "nowhere.jsonl")
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}')
    with pytest.raises(CorpusError, match="not UTF-8"):
        read_jsonl(path)
    path.write_text("\n")
    with pytest.raises(CorpusError, match="no records"):
        read_jsonl(path)


@pytest.mark.parametrize(
    ("fields", "identifier"),
    [
        ('"id": "a"', "a"),
        ('"_id": "a"', "a"),
        ('"id": "a", "_id": "b"', "a"),
        ('"id": null, "_id": "b"', "b"),
        ('"id": "", "_id": null', "2"),
        ('"id": null', "2"),
        ('"title": null', "2"),
        ('"id": 0', "0"),
        ('"id": 12345678901234567890123', "12345678901234567890123"),
        ('"id": 1.5', "1.5"),
        ('"id": "None"', "None"),
    ],
)
def test_a_record_without_an_id_has_its_line_number(fields: str, identifier: str) -> None:
    file = io.BytesIO(f'\n{{{fields}, "text": "x"}}\n'.encode())
    assert read_jsonl(file) == [Passage(identifier, "", "x")]


def test_repeated_ids_are_counted_and_nothing_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    file = io.BytesIO(b"".join(b'{"id": "%s", "text": "t%d"}\n' % (b"abab"[i : i + 1], i) for i in range(4)))
    assert [passage.text for passage in read_jsonl(file, name="x.jsonl")] == ["t0", "t1", "t2", "t3"]
    assert caplog.messages == [
        "x.jsonl: 2 records have the id of an earlier one: 'a' in lines 1 and 3, 'b' in lines 2 and 4"
    ]


ENCODINGS = {
    "plain": lambda text: text.encode(),
    "BOM": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 of the other end": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "no final newline": lambda text: text.removesuffix("\n").encode(),
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_lines_and_records_of_any_origin(encode: Callable[[str], bytes]) -> None:
    texts = ["é\f one", "", "two \u2028 \x85 \x0b lines", "x" * 1_000_000, "end"]
    data = encode("".join(text + "\n" for text in texts))
    assert [passage.text for passage in read_lines(io.BytesIO(data), name="t")] == texts

    records = encode("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    found = read_jsonl(io.BytesIO(records))
    assert [(passage.id, passage.text) for passage in found] == [(str(i), text) for i, text in enumerate(texts, 1)]


@pytest.mark.parametrize("bad", [b"caf\xe9", b"nul \0", b"\xed\xa0\x80"])
def test_a_bad_line_is_named_or_counted(bad: bytes, caplog: pytest.LogCaptureFixture) -> None:
    data = b"one\n" + bad + b"\nthree\n" + bad + b"\n"
    with pytest.raises(CorpusError, match="^t:2: "):
        read_lines(io.BytesIO(data), name="t")
    kept = read_lines(io.BytesIO(data), name="t", skip_bad=True)
    assert [passage.text for passage in kept] == ["one", "three"]
    assert caplog.messages[0].startswith("t: 2 bad lines left out, the first: t:2: ") and len(caplog.messages) == 1


def test_one_bad_record_among_many(caplog: pytest.LogCaptureFixture) -> None:
    lines = [b'{"text": "t"}'] * 100_000
    lines[70_000] = b'{"text": "t"'
    data = b"\n".join(lines)
    with pytest.raises(CorpusError, match="^c.jsonl:70001: not JSON"):
        read_jsonl(io.BytesIO(data), name="c.jsonl")
    kept = read_jsonl(io.BytesIO(data), name="c.jsonl", skip_bad=True)
    assert len(kept) == 99_999 and kept[70_000].id == "70002"
    assert [message[:55] for message in caplog.messages] == ["c.jsonl: 1 bad line left out, the first: c.jsonl:70001:"]


@pytest.mark.parametrize(
    ("title", "text"),
    [("Ice", "Ice moves."), ("C", "Cats purr."), ("Cats purr.", "C"), ("same", "same"), ("A > B", "x\ny")],
)
def test_titles_are_joined_the_same_way_everywhere(title: str, text: str) -> None:
    record = {"_id": "1", "title": title, "text": text}
    joined = f"{title} {text}"
    assert with_title(title, text) == joined == document_text("here", record)
    assert read_jsonl(io.BytesIO(json.dumps(record).encode()))[0].content == joined


def test_what_has_no_title_or_no_text_is_not_padded() -> None:
    assert with_title("", " as it is ") == with_title(" ", " as it is ") == " as it is "
    assert with_title("title", "") == "title"
    assert read_jsonl(io.BytesIO(b'{"title": "t", "text": "x"}'), field="title")[0].content == "t"
