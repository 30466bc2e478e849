"""Every command that writes leaves what was there or what it should write, and says which file it was about."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from searchr3_embed import files
from searchr3_embed.cli import main as cli
from tests.cli.command import Command

COMMANDS = {
    "encode to npy": ("encode", "{texts}", "--output", "{out}/v.npy", "--force"),
    "encode to jsonl": ("encode", "{texts}", "--output", "{out}/v.jsonl", "--force"),
    "save": ("save", "{model}", "{out}/model", "--force"),
    "join": ("join", "{encoder}", "--out", "{out}/model", "--force"),
    "search": ("search", "{texts}", "a river", "--cache-folder", "{out}"),
}
OLD = {"v.npy": "old", "v.jsonl": "old", "model/config.json": "old", "model/mine": "stays"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "texts.txt").write_text("a river\na bank\n")
    (tmp_path / "out" / "model").mkdir(parents=True)
    for name, text in OLD.items():
        (tmp_path / "out" / name).write_text(text)
    return tmp_path / "out"


def words(name: str, out: Path, command: Command, encoder: Path) -> list[str]:
    places = {"texts": out.parent / "texts.txt", "out": out, "model": command.model, "encoder": encoder}
    found = [word.format(**places) for word in COMMANDS[name]]
    return [*found, "--model", str(command.model)] if name.startswith(("encode", "search")) else found


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", COMMANDS)
def test_stopped_in_the_middle_of_writing(
    name: str,
    out: Path,
    command: Command,
    encoder_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write = files._NamedFile.write

    def stopped(self: Any, data: Any) -> int:
        monkeypatch.setattr(files._NamedFile, "write", write)
        write(self, bytes(data)[:3])
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal came later")

    monkeypatch.setattr(files._NamedFile, "write", stopped)
    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        pytest.skip("SIGTERM is handled already")
    assert cli.main(words(name, out, command, encoder_folder)) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith("searchr3: terminated\n")
    assert contents(out) == OLD and not list(out.parent.rglob(".*"))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("name", COMMANDS)
def test_where_nothing_may_be_written(
    name: str,
    number: int,
    out: Path,
    command: Command,
    encoder_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forbid_writing(out, number, monkeypatch)
    code = cli.main(words(name, out, command, encoder_folder))
    err = capsys.readouterr().err
    assert code == (0 if name == "search" else 2)
    about = [line for line in err.splitlines() if os.strerror(number) in line]
    assert len(about) == 1 and str(out) in about[0] and "unfinished" not in err and "Traceback" not in err
    assert contents(out) == OLD


def forbid_writing(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so that permissions would not do."""
    make, open_file = os.mkdir, os.open

    def refused(path: Any) -> None:
        if Path(os.fsdecode(path)).is_relative_to(folder):
            raise OSError(number, os.strerror(number), path)

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        refused(path)
        make(path, *args, **kwargs)

    def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            refused(path)
        return open_file(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "open", opened)


@pytest.mark.skipif(os.name != "posix", reason="HOME of POSIX")
def test_a_home_that_is_read_only_costs_one_line(
    out: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(out))
    forbid_writing(out, errno.EROFS, monkeypatch)
    texts = out.parent / "texts.txt"
    assert cli.main(["search", str(texts), "a river", "--model", str(command.model)]) == 0
    found, err = capsys.readouterr()
    assert "a bank" in found and err.count("cannot be kept in") == 1 and err.count(os.strerror(errno.EROFS)) == 1
    assert contents(out) == OLD
