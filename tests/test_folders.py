"""A folder's old content or its new one, whatever happens."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from searchr3_embed import folders
from searchr3_embed.folders import replacing_files

posix = pytest.mark.skipif(os.name != "posix", reason="permissions, links, pipes and signals of POSIX")
exchanges = pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no system call for it")


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


def write(folder: Path, text: str, names: tuple[str, ...] = ("a", "sub/b", "c")) -> None:
    with replacing_files(folder, stale=lambda name: name.startswith("old")) as scratch:
        for name in names:
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).write_text(text, encoding="utf-8")


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)


def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the folder above may not be written; root may write everywhere."""
    make = Path.mkdir

    def refused(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name.startswith(".model.") and path.name.endswith(".unfinished"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refused)


WAYS = [
    pytest.param(lambda monkeypatch: None, id="exchanged", marks=exchanges),
    pytest.param(one_by_one, id="one by one"),
    pytest.param(inside, id="inside"),
    pytest.param(lambda monkeypatch: monkeypatch.chdir("model"), id="worked in"),
]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that has been written once and holds other things besides."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    write(folder, "old", ("a", "sub/b", "c", "old weights"))
    (folder / "sub" / "mine").write_text("stays", encoding="utf-8")
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_files_take_their_places_together(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[Any], None]
) -> None:
    way(monkeypatch)
    before = contents(model)
    with pytest.raises(RuntimeError), replacing_files(model) as scratch:
        (scratch / "b").write_text("half", encoding="utf-8")
        raise RuntimeError
    assert contents(model) == before
    with pytest.raises(IsADirectoryError if os.name == "posix" else OSError):  # nothing of another kind is replaced
        write(model, "new", ("empty",))
    assert contents(model) == before
    write(model, "new")
    assert contents(model) == {"a": "new", "sub/b": "new", "c": "new", "sub/mine": "stays"}
    assert (model / "empty").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_was_not_there_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "above" / "model"
    with pytest.raises(RuntimeError), replacing_files(target) as scratch:
        (scratch / "a").write_text("half", encoding="utf-8")
        assert not target.exists()
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with replacing_files(target) as scratch:
        (scratch / "a").write_text("new", encoding="utf-8")
        write(target, "by another process", ("a", "b"))
    assert contents(target) == {"a": "new", "b": "by another process"}
    assert list(target.parent.iterdir()) == [target]


# Each round forks a process that dies at the next system call that Python reports.
KILLS = """
import json, os, sys
from pathlib import Path
import ctypes, shutil, signal
from searchr3_embed import folders

target, exchange = Path(sys.argv[1]), folders._exchange
states = []

def write(text):
    with folders.replacing_files(target, stale=lambda name: name.startswith("old")) as scratch:
        (scratch / "sub").mkdir()
        for name in ("a", "sub/b", "c"):
            (scratch / name).write_text(text)

def killed_at(moment):
    left = [moment]
    def count(event, arguments):
        if event.startswith(("os.", "open", "shutil.", "ctypes.", "fcntl.")):
            left[0] -= 1
            if not left[0]:
                os._exit(9)
    sys.addaudithook(count)
    if exists:
        def exchange_and_die(one, other):
            done = exchange(one, other)
            count("os.", ())
            return done
        folders._exchange = exchange_and_die
    write("new")
    os._exit(0)

for exists in (True, False):
    for moment in range(1, 1000, 1 if exists else 3):
        shutil.rmtree(target, ignore_errors=True)
        if exists:
            write("old")
            (target / "old weights").touch()
            (target / "mine").write_text("stays")
        child = os.fork()
        if not child:
            killed_at(moment)
        _, status = os.waitpid(child, 0)
        files = [path for path in target.rglob("*") if path.is_file()]
        states.append([exists, {str(path.relative_to(target)): path.read_text() for path in files}])
        write("next")
        states[-1].append(sorted(os.listdir(target.parent)))
        if not status:
            break
print(json.dumps(states))
"""


@exchanges
def test_killed_at_any_moment(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLS, str(tmp_path / "model")]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    states = json.loads(run.stdout)
    for existed, other in ((True, {"mine": "stays"}), (False, {})):
        new = dict.fromkeys(("a", "c", "sub/b"), "new") | other
        old = dict.fromkeys(("a", "c", "sub/b"), "old") | {"mine": "stays", "old weights": ""} if existed else {}
        found = [state for before, state, _ in states if before == existed]
        assert len(found) > 5 and found[0] == old and found[-1] == new
        assert [state for state in found if state not in (old, new)] == []
        assert found.index(new) < len(found) - 1 or not existed, "killed while the old folder was removed, too"
    assert [beside for *_, beside in states if beside != ["model"]] == [], "remains are removed by the next call"


@posix
def test_links_are_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("model")
    (model / "c").unlink()
    (tmp_path / "elsewhere").write_text("old", encoding="utf-8")
    (model / "dangling").symlink_to("nothing")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (model / "a").read_text() == (model / "c").read_text() == "new"
    assert os.readlink(model / "dangling") == "nothing"
    (model / "c").unlink()
    (model / "c").symlink_to("../elsewhere")
    write(model, "newer")
    assert (model / "c").is_symlink() and contents(model)["a"] == (tmp_path / "elsewhere").read_text() == "newer"
    (tmp_path / "to come").symlink_to("not yet there")
    write(tmp_path / "to come", "new")
    assert contents(tmp_path / "not yet there")["a"] == "new"


@posix
@pytest.mark.parametrize("way", WAYS)
def test_permissions(model: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[pytest.MonkeyPatch], None]) -> None:
    way(monkeypatch)
    model.chmod(0o2751)
    (model / "sub").chmod(0o700)
    (model / "sub" / "mine").chmod(0o604)
    before = os.umask(0o027)
    try:
        with replacing_files(model) as scratch:
            (scratch / "a").touch(0o600)
            (scratch / "sub").mkdir()
            (scratch / "sub" / "b").touch(0o600)
    finally:
        os.umask(before)
    modes = {name: oct((model / name).stat().st_mode & 0o7777) for name in (".", "sub/mine", "a", "sub/b")}
    assert modes == {".": "0o2751", "sub/mine": "0o604", "a": "0o640", "sub/b": "0o640"}


@posix
def test_where_there_are_no_hard_links(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    (model / "sub" / "mine").chmod(0o604)
    write(model, "new")
    assert contents(model) == {"a": "new", "sub/b": "new", "c": "new", "sub/mine": "stays"}
    assert (model / "sub" / "mine").stat().st_mode & 0o777 == 0o604
    os.mkfifo(model / "pipe")  # copying it would wait for ever
    write(model, "newer")
    assert contents(model)["a"] == "newer" and (model / "pipe").is_fifo()


def test_a_folder_of_many_other_things_is_left_where_it_is(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_MOST_OTHER_FILES", 3)
    before = model.stat().st_ino
    write(model, "new")
    assert contents(model) == {"a": "new", "sub/b": "new", "c": "new", "sub/mine": "stays"}
    assert model.stat().st_ino == before


@exchanges
def test_what_others_write_in_the_meantime_stays(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = folders._exchange

    def late(one: Path, other: Path) -> bool:
        (model / "late").write_text("stays", encoding="utf-8")
        return exchange(one, other)

    monkeypatch.setattr(folders, "_exchange", late)
    write(model, "new")
    assert contents(model) == {"a": "new", "sub/b": "new", "c": "new", "sub/mine": "stays", "late": "stays"}


@posix
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_until_all_files_are_in_their_places(
    model: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[pytest.MonkeyPatch], None], number: int
) -> None:
    way(monkeypatch)
    permit = folders._set_permissions

    def interrupted(scratch: Path, written: list[Path]) -> None:
        permit(scratch, written)
        os.kill(os.getpid(), number)

    def stop(number: int, frame: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(folders, "_set_permissions", interrupted)
    before = signal.signal(number, stop)
    try:
        with pytest.raises(InterruptedError):
            write(model, "new")
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert contents(model) == {"a": "new", "sub/b": "new", "c": "new", "sub/mine": "stays"}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_can_not_be_written_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number), os.fspath(path))

    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError) as raised:
            write(wrong, "new")
        assert raised.value.filename == str(wrong)
    before = contents(tmp_path)
    monkeypatch.setattr(os, "mkdir", refused)
    for name in ("model", "not yet there"):
        with pytest.raises(OSError) as raised:
            write(Path(name), "new")
        assert (raised.value.filename, raised.value.errno) == (name, number)
    with pytest.raises(OSError) as raised:  # a library's own error, in the middle
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        with replacing_files("model") as scratch:
            refused(scratch / "a")
    assert raised.value.filename == os.path.join("model", "a")
    assert contents(tmp_path) == before


@posix
@pytest.mark.parametrize("exists", [False, True])
def test_what_is_being_written_stays_and_remains_do_not(tmp_path: Path, exists: bool) -> None:
    code = """
import sys, time
from searchr3_embed.folders import replacing_files
with replacing_files(sys.argv[1]) as scratch:
    print(flush=True)
    time.sleep(60)
"""
    target = tmp_path / ("模型" * 40)
    if exists:
        target.mkdir()
    writer = subprocess.Popen([sys.executable, "-c", code, target], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    try:
        write(target, "new")
        assert len(list(tmp_path.rglob("*.unfinished"))) == 1, "what is being written stays"
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    write(target, "newer")
    assert list(tmp_path.rglob("*.unfinished")) == [] and contents(target) == dict.fromkeys(
        ("a", "sub/b", "c"), "newer"
    )
