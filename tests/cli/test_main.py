"""The parser of ``searchr3``, its errors, and how a command ends."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from searchr3_embed.cli import bug_report
from searchr3_embed.cli import main as cli
from tests.cli.command import Command


@pytest.mark.parametrize("name", ["encode", "search", "reason", "save", "serve", "env", "demo"])
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
        ("encode latin.txt", "latin.txt:1: not UTF-8"),
        ("encode bad.jsonl", "bad.jsonl:2: not JSON"),
        ("encode latin.txt --format jsonl", "latin.txt:1: not UTF-8"),
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


@pytest.mark.parametrize("error", [ValueError("interrupted within"), None])
def test_an_interruption_that_a_library_swallowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: ValueError | None
) -> None:
    def report(_: object) -> Any:
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        if error is not None:
            raise error
        return {"a": {"b": 1}}

    monkeypatch.setattr(bug_report, "report", report)
    # In the background of a shell it is ignored, and the tests may run there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main(["env"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "searchr3: interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_unwinds_as_an_interruption_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    number = getattr(signal, name)
    if signal.getsignal(number) != signal.SIG_DFL:
        pytest.skip(f"{name} is handled already, as under nohup")
    cleaned = []

    def report(_: object) -> Any:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            os.kill(os.getpid(), number)  # a second one does not stop the cleaning up
            cleaned.append(True)

    monkeypatch.setattr(bug_report, "report", report)
    assert cli.main(["env"]) == 128 + number
    assert capsys.readouterr() == ("", "searchr3: terminated\n") and cleaned
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.skipif(os.name != "posix", reason="shell syntax of POSIX")
@pytest.mark.parametrize(
    ("command_line", "status", "out", "err"),
    [
        ("encode - <&-", 2, "", "searchr3: error: standard input is closed\n"),
        ("--version >&-", 0, "", ""),
        ("encode missing.txt 2>&-", 2, "", ""),
        ("encode missing.txt >&- 2>&- <&-", 2, "", ""),
    ],
)
def test_closed_streams(command_line: str, status: int, out: str, err: str) -> None:
    line = f'"{sys.executable}" -m searchr3_embed {command_line}'
    run = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (status, out, err)
