"""The ``searchr3`` command, in process, with a small random model."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.cli import bug_report, demo
from searchr3_embed.cli import main as cli
from searchr3_embed.search import python_docs
from searchr3_embed.search.passages import Passage


class Run(NamedTuple):
    code: int
    out: str
    err: str


class Command:
    """Runs the command with the small model and returns what a shell would see."""

    def __init__(self, capsys: pytest.CaptureFixture[str], model: Path, cache: Path) -> None:
        self.capsys, self.model, self.cache = capsys, model, cache

    def __call__(self, *arguments: str | Path) -> Run:
        words = [str(argument) for argument in arguments]
        if words and words[0] in ("encode", "search", "reason", "demo") and "--model" not in words:
            words += ["--model", str(self.model)]
        if words and words[0] in ("search", "demo", "env"):
            words += ["--cache-folder", str(self.cache)]
        code = cli.main(words)
        return Run(code, *self.capsys.readouterr())

    def fails(self, *arguments: str | Path) -> str:
        """Run what must fail: status 2, nothing printed, one line of error; returns the message."""
        code, out, err = self(*arguments)
        assert code == 2
        assert out == ""
        assert err.startswith("searchr3: error: ") and err.endswith("\n") and err.count("\n") == 1
        return err


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], mini_checkpoint: Path, tmp_path: Path) -> Command:
    return Command(capsys, mini_checkpoint, tmp_path / "cache")


@pytest.fixture(scope="module")
def embedder(mini_checkpoint: Path) -> ReasoningEmbedder:
    return ReasoningEmbedder(mini_checkpoint, device="cpu")


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


# ---------------------------------------------------------------------------------------------- help and errors


@pytest.mark.parametrize("name", ["encode", "search", "reason", "save", "env", "demo"])
def test_help_teaches(command: Command, name: str) -> None:
    assert name in command("--help").out
    code, out, err = command(name, "--help")
    assert (code, err) == (0, "")
    assert "--verbose" in out
    if name not in ("env", "demo"):
        assert f"searchr3 {name}" in out.partition("examples:")[2]


def test_help_is_quick_because_it_loads_nothing() -> None:
    code = (
        "import sys; from searchr3_embed.cli.main import main; code = main(['--help']);"
        "print(code, [name for name in ('torch', 'numpy', 'transformers', 'tqdm') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["frobnicate"], "'frobnicate'"),
        (["encode"], "required: INPUT"),
        (["encode", "x.txt", "--frob"], "unrecognized arguments: --frob"),
        (["encode", "x.txt", "y.txt"], "unrecognized arguments: y.txt"),
        (["encode", "x.txt", "--as", "poem"], "'poem'"),
        (["encode", "x.txt", "--batch-size", "0"], "expected an integer >= 1, got '0'"),
        (["encode", "x.txt", "--batch-size", "many"], "expected an integer >= 1, got 'many'"),
        (["reason", "x", "--max-reasoning-tokens", "-1"], "expected an integer >= 0, got '-1'"),
        (["search", "x", "y", "--top-k", "0"], "expected an integer >= 1, got '0'"),
        (["search", "x", "y", "--frob", "-k", "3"], "unrecognized arguments: --frob"),
        (["save", "searchr3"], "required: FOLDER"),
    ],
)
def test_bad_arguments(command: Command, arguments: list[str], message: str) -> None:
    assert message in command.fails(*arguments)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "empty folder").mkdir(parents=True)
    (folder / "texts.txt").write_text("one\ntwo\n")
    (folder / "bad.jsonl").write_text('{"text": "good"}\n{"text": \n')
    (folder / "list.jsonl").write_text('["a"]\n')
    (folder / "good.jsonl").write_text('{"text": "good", "number": 3}\n')
    (folder / "surrogate.jsonl").write_text('{"text": "\\ud800"}\n')
    (folder / "nothing.txt").write_text("")
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "taken.npy").write_bytes(b"precious")
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("encode missing.txt", "missing.txt: No such file"),
        ("encode missing.jsonl", "missing.jsonl: No such file"),
        ("encode nothing.txt", "nothing.txt: no text"),
        ("encode latin.txt", "latin.txt: not UTF-8"),
        ("encode bad.jsonl", "bad.jsonl:2: not JSON"),
        ("encode latin.txt --format jsonl", "latin.txt: not UTF-8"),
        ("encode empty%folder", "empty folder: "),
        ("encode list.jsonl", "list.jsonl:1: expected a JSON object"),
        ("encode good.jsonl --field body", "good.jsonl:1: no field 'body'"),
        ("encode good.jsonl --field number", "field 'number' must be a string, got int"),
        ("encode surrogate.jsonl", "U+D800"),
        ("encode texts.txt -o taken.npy", "taken.npy: exists already; pass --force"),
        ("encode texts.txt -o out.csv", "must end in .npy or .jsonl, got 'out.csv'"),
        ("encode texts.txt -o nowhere/out.npy", "there is no folder 'nowhere'"),
        ("encode texts.txt --model no-such-model", "'no-such-model'"),
        ("encode texts.txt --model empty%folder", "config.json"),
        ("encode texts.txt --model texts.txt", "is a file"),
        ("encode texts.txt --device toaster", "--device: expected cpu, cuda, cuda:1, mps ..., got 'toaster'"),
        ("encode texts.txt --as query --max-reasoning-tokens 100000", "got 100000"),
        ("reason why --max-reasoning-tokens 100000", "got 100000"),
        ("search texts.txt", "no question for 'texts.txt'"),
        ("search nowhere what", "nowhere: no such folder or file"),
        ("search empty%folder what", "no text in this folder"),
        ("search picture.png what", "picture.png: expected a folder or a file ending in .jsonl"),
        ("search bad.jsonl what", "bad.jsonl:2: not JSON"),
        ("save no-such-model out", "'no-such-model'"),
        ("save searchr3 texts.txt", "texts.txt: is a file"),
        ("save searchr3 .", "is not empty; pass --force"),
    ],
)
def test_errors_are_one_line(
    command: Command, files: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.chdir(files)
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}

    assert message in command.fails(*(word.replace("%", " ") for word in line.split()))

    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


def test_verbose_shows_where_an_error_came_from(command: Command, files: Path) -> None:
    code, _, err = command("encode", files / "bad.jsonl", "--verbose")
    assert code == 2
    assert "Traceback" in err and err.splitlines()[-1].startswith("searchr3: error: ")


def test_interruption_and_closed_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(bug_report, "report", interrupt)
    assert cli.main(["env"]) == 130
    assert capsys.readouterr() == ("", "searchr3: interrupted\n")

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(bug_report, "report", lambda _: {"a": {"b": 1}})
    monkeypatch.setattr(sys, "stdout", Closed())
    assert cli.main(["env"]) == 141
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------------- encode


def test_encode_lines_to_npy(command: Command, embedder: ReasoningEmbedder, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes("\ufeffone\r\n\nthrée".encode())
    code, out, err = command("encode", tmp_path / "texts.txt", "-o", tmp_path / "v.npy")
    assert (code, out) == (0, "")
    assert err.startswith("3 vectors of 32 numbers in ")

    vectors = np.load(tmp_path / "v.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, embedder.encode(["one", "", "thrée"]), atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt", "v.npy"], "no temporary file stays"

    (tmp_path / "texts.txt").write_text("other")
    assert command("encode", tmp_path / "texts.txt", "-o", tmp_path / "v.npy", "--force").code == 0
    assert np.load(tmp_path / "v.npy").shape == (1, 32)


def test_encode_jsonl_keeps_ids_and_text(command: Command, embedder: ReasoningEmbedder, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "a", "q": "naïve"}\n{"q": "two"}\n', encoding="utf-8")
    run = command("encode", tmp_path / "in.jsonl", "--field", "q", "--as", "query", "-o", tmp_path / "out.jsonl")
    assert run.code == 0

    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(record["id"], record["text"]) for record in records] == [("a", "naïve"), ("2", "two")]
    expected = embedder.encode_query(["naïve", "two"])
    np.testing.assert_allclose([record["embedding"] for record in records], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--as", "query"], True),
        (["--as", "query", "--no-reason"], False),
        (["--as", "document"], False),
        ([], False),
        (["--reason"], True),
    ],
)
def test_encode_thinks_about_queries_only(
    command: Command,
    embedder: ReasoningEmbedder,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    reason: bool,
) -> None:
    stdin(monkeypatch, "why is the sky blüe\n".encode())
    code, out, err = command("encode", "-", *options)
    assert (code, err) == (0, "")
    (record,) = map(json.loads, out.splitlines())
    assert record["text"] == "why is the sky blüe" and "id" not in record
    expected = embedder.encode(record["text"], reason=reason)
    np.testing.assert_allclose(record["embedding"], expected, atol=1e-6)


def test_encode_jsonl_from_stdin(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b'{"text": "one"}\n{"text"\n')
    assert "standard input:2: not JSON" in command.fails("encode", "-", "--format", "jsonl")


def test_a_text_that_is_too_long_is_one_line_of_warning(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"short\n" + b"long " * 500)
    code, out, err = command("encode", "-")
    assert code == 0 and len(out.splitlines()) == 2
    assert err.startswith("searchr3: warning: 1 of 2 texts ") and err.count("\n") == 1


# ------------------------------------------------------------------------------------------------------- search


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
    assert encoded == ["notes.txt\nThe river flows through London."]
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


@pytest.fixture
def small_stdlib(monkeypatch: pytest.MonkeyPatch) -> list[Passage]:
    names = ["json.loads", "subprocess.run", "random.choice", "tempfile.TemporaryDirectory", "functools.cache", "zip"]
    passages = [Passage(name, name, f"{name}(x)\nDoes what {name} does, and returns it.") for name in names]
    monkeypatch.setattr(python_docs, "read_stdlib", lambda: passages)
    return passages


def test_search_stdlib(command: Command, small_stdlib: list[Passage]) -> None:
    code, out, err = command("search", "--stdlib", "parse json", "-k", "100")
    assert code == 0 and err.startswith("6 passages of the standard library, indexed in ")
    assert all(passage.id in out for passage in small_stdlib)


# --------------------------------------------------------------------------------------- reason, save, env, demo


def test_reason(command: Command, embedder: ReasoningEmbedder) -> None:
    code, out, err = command("reason", "why?", "what flows through paris", "--json")
    assert (code, err) == (0, "")
    records = [json.loads(line) for line in out.splitlines()]
    for record, trace in zip(records, embedder.reason(["why?", "what flows through paris"]), strict=True):
        assert record.pop("seconds") > 0
        assert record == {
            "text": trace.text,
            "reasoning": trace.reasoning,
            "finish_reason": trace.finish_reason,
            "prompt_tokens": trace.prompt_tokens,
            "reasoning_tokens": trace.reasoning_tokens,
        }

    code, out, _ = command("reason", "why?", "--max-reasoning-tokens", "0")
    assert code == 0
    assert "question:  why?\nreasoning: (nothing)\n" in out and ", 0 reasoning\n" in out


def test_save_makes_what_stock_sentence_transformers_loads(
    command: Command, embedder: ReasoningEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command("save", command.model, "./searchr3")
    assert (code, out) == (0, "") and err.count("\n") == 1

    texts = ["why is the sky blue", "the river"]
    stock = SentenceTransformer("searchr3", device="cpu")
    np.testing.assert_allclose(stock.encode(texts), embedder.encode(texts), atol=1e-5)
    assert not list((tmp_path / "searchr3").glob(".*")), "no temporary folder stays"

    assert "is not empty" in command.fails("save", command.model, "searchr3")
    assert command("save", command.model, "searchr3", "--force").code == 0
    assert ReasoningEmbedder("./searchr3", device="cpu").reason("why?").text == "why?"


def test_env_reports_what_a_bug_report_needs(command: Command) -> None:
    code, out, err = command("env", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["system"]["python"] and report["system"]["cpus"] == os.cpu_count()
    assert report["versions"]["torch"] and report["versions"]["sentence-transformers"]
    assert report["torch"]["threads"] >= 1
    assert "searchr3-mini" in report["packaged checkpoint"]["folder"]
    assert report["cache"] == {"folder": str(command.cache), "files": 0, "bytes": 0}
    assert "sentence-transformers: " in command("env").out


def test_env_survives_a_broken_installation(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, _ = command("env", "--json")
    assert code == 0
    assert "ModuleNotFoundError" in json.loads(out)["torch"]["error"]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_demo(command: Command, small_stdlib: list[Passage], monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = command("demo")
    assert code == 0 and "6 entries" in err
    lines = out.splitlines()
    assert max(map(len, lines)) <= min(columns, 120)
    for question in demo.QUESTIONS:
        assert any(question[:40] in line for line in lines)
    assert sum(line.startswith("thinks:") for line in lines) == 6
    assert any(line.startswith("with reasoning, ") and "without, " in line for line in lines) == (columns > 60)
    assert "6 entries, indexed in " in out
    assert "median time per question: " in out
    assert "6 entries, vectors from the cache in " in command("demo").out


def test_nothing_but_the_answer_is_printed(mini_checkpoint: Path) -> None:
    """In a process of its own, where libraries report on what they load."""
    arguments = ["reason", "why?", "--json", "--model", str(mini_checkpoint)]
    result = subprocess.run(
        [sys.executable, "-m", "searchr3_embed", *arguments], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout)["text"] == "why?"
    assert result.stderr == ""
