"""Reading passages from folders, JSONL and Python's own documentation."""

from __future__ import annotations

import gc
import hashlib
import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from searchr3_embed.search import python_docs
from searchr3_embed.search.passages import (
    CorpusError,
    Passage,
    read_file,
    read_folder,
    read_jsonl,
)
from searchr3_embed.search.splitting import split_text, word_count

MARKDOWN = """\
Before any heading.

# Guide

Intro, first line
and second line.

## Install

Run `pip install it`.

```sh
# not a heading
pip install it
```

## Use ##

Import it.

# Appendix
Right below the heading.
"""

RESTRUCTURED = """\
=====
Title
=====

Lead.

First part
----------

Text of the first part.

- an item
- another

Second part
-----------

Deeper
~~~~~~

Text below.
"""


def test_markdown_is_cut_at_its_headings() -> None:
    pieces = split_text(MARKDOWN)
    assert [(line, heading) for line, heading, _ in pieces] == [
        (1, ""),
        (5, "Guide"),
        (10, "Guide > Install"),
        (19, "Guide > Use"),
        (22, "Appendix"),
    ]
    assert "# not a heading" in pieces[2][2]
    lines = MARKDOWN.splitlines()
    assert all(lines[line - 1] == text.splitlines()[0] for line, _, text in pieces), "line numbers are right"


def test_underlined_headings_nest_by_order_of_appearance() -> None:
    assert [(heading, text.splitlines()[0]) for _, heading, text in split_text(RESTRUCTURED)] == [
        ("Title", "Lead."),
        ("Title > First part", "Text of the first part."),
        ("Title > Second part > Deeper", "Text below."),
    ]


def test_definitions_are_headings_only_when_asked() -> None:
    text = "String Methods\n**************\n\nAll.\n\nstr.split(sep=None)\n\n   Cuts.\n\nstr.strip()\n\n   Strips.\n"
    assert [heading for _, heading, _ in split_text(text)] == ["String Methods"]
    assert [heading for _, heading, _ in split_text(text, definitions=True)] == [
        "String Methods",
        "String Methods > str.split(sep=None)",
        "String Methods > str.strip()",
    ]


def test_no_passage_is_longer_than_allowed_and_no_word_is_lost() -> None:
    words = [f"word{number}" + "." * (number % 17 == 0) for number in range(1000)]
    paragraphs = [" ".join(words[start : start + 90]) for start in range(0, 1000, 90)]
    pieces = split_text("\n\n".join(paragraphs), max_words=50)

    assert all(word_count(text) <= 50 for _, _, text in pieces)
    assert " ".join(text for _, _, text in pieces).split() == words
    assert min(len(text.split()) for _, _, text in pieces[:5]) > 10, "no stubs"


@pytest.mark.parametrize("text", ["漢字" * 2000, "x" * 10_000, "一。" * 3000, "🙂" * 3000])
def test_text_without_spaces_is_cut_too(text: str) -> None:
    pieces = [piece for _, _, piece in split_text(text, max_words=100)]
    assert "".join(pieces) == text
    assert all(word_count(piece) <= 100 for piece in pieces)


@pytest.mark.parametrize("text", ["", "   \n\n \t\n", "# only a heading\n", "=====\n", "```\n"])
def test_split_text_takes_anything(text: str) -> None:
    assert all(piece for _, _, piece in split_text(text))


def test_read_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
    (tmp_path / "sub" / "b.rst").write_text("Plain text.\n")
    (tmp_path / "sub" / ".hidden" / "no.md").write_text("hidden")
    (tmp_path / ".no.md").write_text("hidden")
    (tmp_path / "a.md").write_bytes("\ufeff# Héading\n\ntext\n".encode())
    (tmp_path / "code.py").write_text("no = True")
    (tmp_path / "latin.TXT").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "binary.txt").write_bytes(b"\x00\x01")
    (tmp_path / "empty.txt").write_text("")
    with caplog.at_level(logging.WARNING):
        passages = read_folder(tmp_path)

    assert passages == [
        Passage("a.md:3", "Héading", "text"),
        Passage("latin.TXT:1", "latin.TXT", "caf\ufffd"),
        Passage("sub/b.rst:1", "b.rst", "Plain text."),
    ]
    assert passages[0].content == "Héading\ntext"
    assert "binary.txt" in caplog.text
    assert read_folder(tmp_path, suffixes=[".py"])[0].id == "code.py:1"


def test_read_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("one\n\ntwo")
    assert read_file(path) == [Passage("notes.txt:1", "notes.txt", "one\n\ntwo")]
    path.write_text("\n")
    with pytest.raises(CorpusError, match="no text"):
        read_file(path)
    with pytest.raises(CorpusError, match="nowhere.txt"):
        read_file(tmp_path / "nowhere.txt")


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
    assert passages == [Passage("7", "T", "body"), Passage("x", "", ""), Passage("4", "", "T")]
    assert passages[0].content == "T\nbody"
    assert read_jsonl(io.StringIO('{"q": "why"}'), field="q") == [Passage("1", "", "why")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", ":2: not JSON"),
        ('["a list"]', ":2: expected a JSON object, got list"),
        ('{"title": "x"}', r":2: no field 'text' \(the record has 'title'"),
        ("{}", ":2: no field 'text' .the record has no fields"),
        ('{"text": null}', ":2: field 'text' must be a string, got NoneType"),
        ("[" * 100_000, ":2: not"),
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


# ------------------------------------------------------------------------------------------ the standard library


@pytest.fixture(scope="module")
def stdlib() -> dict[str, Passage]:
    passages = python_docs.read_stdlib()
    assert gc.isenabled()
    by_id = {passage.id: passage for passage in passages}
    assert len(by_id) == len(passages), "ids are unique"
    return by_id


def test_stdlib_has_some_thousands_of_entries_of_bounded_length(stdlib: dict[str, Passage]) -> None:
    assert 4000 < len(stdlib) < 8000
    assert sum(id_.startswith("topic:") for id_ in stdlib) > 300
    words = [len(passage.content.split()) for passage in stdlib.values()]
    assert max(words) <= 150
    assert sum(words) < 300_000
    assert all(passage.text.strip() for passage in stdlib.values())


@pytest.mark.parametrize(
    "name",
    [
        "json.loads",
        "str.split",
        "print",
        "subprocess.run",
        "math.sqrt",
        "itertools.groupby",
        "collections.deque.rotate",
        "re.Pattern.findall",
        # documented under the name one imports, not under the private or inner module where the source stands
        "asyncio.gather",
        "argparse.ArgumentParser.add_argument",
        "collections.abc.Mapping",
        "concurrent.futures.Future",
        "datetime.datetime.strptime",
        "os.path.join",
        "pathlib.Path.read_text",
        "random.choice",
        "unittest.TestCase.assertEqual",
    ],
)
def test_stdlib_holds_everyday_names(stdlib: dict[str, Passage], name: str) -> None:
    assert name in stdlib[name].text.splitlines()[0]
    assert stdlib[name].content == stdlib[name].text, "the name is in the text, it is not put in front again"


def test_stdlib_entries_read_like_documentation(stdlib: dict[str, Passage]) -> None:
    signature, first = stdlib["json.loads"].text.splitlines()[:2]
    assert signature.startswith("json.loads(s, *, cls=None")
    assert first.startswith("Deserialize ``s``")
    assert "self" not in stdlib["argparse.ArgumentParser.add_argument"].text.splitlines()[0]
    assert any("str.split" in passage.title for id_, passage in stdlib.items() if id_.startswith("topic:"))


def test_stdlib_leaves_out_what_nobody_looks_up(stdlib: dict[str, Passage]) -> None:
    names = [id_ for id_ in stdlib if not id_.startswith("topic:")]
    private = [name for name in names if any(part.startswith("_") for part in name.split(".") if part != "__future__")]
    assert not private
    assert not [name for name in names if name.split(".")[0] in ("test", "idlelib", "lib2to3", "distutils", "pip")]
    texts = [passage.text for id_, passage in stdlib.items() if id_.startswith("topic:")]
    assert len(set(texts)) == len(texts), "topics repeat each other, the entries do not"


def test_stdlib_is_the_same_in_another_process_and_imports_nothing(stdlib: dict[str, Passage]) -> None:
    code = """
import sys
from searchr3_embed.search import python_docs
import hashlib
before = set(sys.modules)
passages = stdlib_docs.read_stdlib()
print(hashlib.sha256(repr(passages).encode()).hexdigest())
for name in sorted(set(sys.modules) - before):
    print(name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    digest, *imported = result.stdout.split()
    assert digest == hashlib.sha256(repr(list(stdlib.values())).encode()).hexdigest()
    unexpected = [
        name for name in imported if name not in python_docs._COMPILED and not name.startswith("_sysconfigdata")
    ]
    assert not unexpected
    assert result.stderr == ""


def test_stdlib_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(CorpusError, match="without the sources"):
        python_docs.read_stdlib()
    assert gc.isenabled()


def test_stdlib_survives_a_file_that_is_not_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good.py").write_text('"""A module."""\n\ndef f(a, b=1):\n    """Does it."""\n')
    (tmp_path / "bad.py").write_text("def")
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(python_docs, "_COMPILED", {})
    with caplog.at_level(logging.WARNING):
        passages = {passage.id: passage.text for passage in python_docs.read_stdlib()}
    assert passages["good.f"] == "good.f(a, b=1)\nDoes it."
    assert "bad.py" in caplog.text
