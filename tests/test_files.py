"""Whole files or none, text files of any origin, names in messages."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from searchr3_embed import files
from searchr3_embed.files import (
    NotTextError,
    check_unicode,
    decode_line,
    decode_text,
    first_line,
    raw_lines,
    read_text,
    replacing,
    shorten,
    write_json,
    write_text,
)

posix = pytest.mark.skipif(os.name != "posix", reason="permissions, links, pipes and signals of POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --------------------------------------------------------------------------------------------------- writing


def test_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_text(target, "old")
    with pytest.raises(RuntimeError), replacing(target) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert target.read_text() == "old" and names(tmp_path) == ["file"]

    with replacing(target) as file:
        file.write(b"new")
    assert target.read_text() == "new" and names(tmp_path) == ["file"]


def test_text_and_json_are_written_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "made" / "a.txt", "é\r\n\n")
    assert (tmp_path / "made" / "a.txt").read_bytes() == "é\r\n\n".encode()
    write_json(tmp_path / "a.json", {"b": "é", "a": 1}, sort_keys=True, indent=None)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{"a": 1, "b": "é"}\n'
    with pytest.raises(UnicodeEncodeError):
        write_json(tmp_path / "a.json", "\ud800")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{"a": 1, "b": "é"}\n'
    assert names(tmp_path) == ["a.json", "made"]


@posix
def test_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new", "")
        write_text(tmp_path / "private", "", private=True)
        (tmp_path / "kept").touch(0o600)
        write_text(tmp_path / "kept", "now")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    assert modes == {"new": "0o640", "private": "0o600", "kept": "0o600"}


@posix
def test_links_are_followed_and_devices_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "through")
    assert (tmp_path / "target").read_text() == "through" and (tmp_path / "link").is_symlink()
    write_text("/dev/null", "gone")
    assert not Path("/dev/null").is_file()


@posix
def test_a_full_disk_is_named_and_spoils_nothing(tmp_path: Path) -> None:
    code = """
import os, resource, sys
import numpy as np
from searchr3_embed.files import replacing
from searchr3_embed.folders import replacing_files
os.chdir(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
def full_npy():
    with replacing("v.npy") as file:
        np.save(file, np.zeros(100_000))
def full_text():
    with replacing("v.npy", "w") as file:
        file.write("x" * 100_000)
def full_folder():
    with replacing_files("model") as scratch:
        (scratch / "weights").write_bytes(bytes(100_000))
for job in (full_npy, full_text, full_folder):
    try:
        job()
    except OSError as error:
        print(error.filename, error.errno)
"""
    (tmp_path / "v.npy").write_text("old")
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [f"v.npy {errno.EFBIG}", f"v.npy {errno.EFBIG}", f"model {errno.EFBIG}"]
    assert (tmp_path / "v.npy").read_text() == "old" and names(tmp_path) == ["v.npy"]


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as raised, replacing(tmp_path / "file" / "below"):
        pass
    assert raised.value.filename == str(tmp_path / "file" / "below")


@posix
def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    code = """
import os, sys, time
from searchr3_embed.files import *
with replacing(sys.argv[1]) as half:
    print(flush=True)
    time.sleep(60)
"""
    target = tmp_path / ("name" * 63)
    writer = subprocess.Popen([sys.executable, "-c", code, target], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    try:
        write_text(target, "new")
        assert len(names(tmp_path)) == 2, "what is being written stays"
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    write_text(target, "newer")
    assert names(tmp_path) == [target.name]


@pytest.mark.parametrize("name", ["n" * 255, "名" * 85])
def test_names_as_long_as_they_may_be(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "long")
    assert names(tmp_path) == [name]


def test_numpy_archives(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.npz") as file:
        np.savez(file, a=np.arange(3))
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["a"].tolist() == [0, 1, 2]


# --------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("data", "text", "guessed"),
    [
        ("é\n".encode(), "é\n", False),
        ("é".encode("utf-8-sig"), "é", False),
        ("é\r\nß".encode("utf-16"), "é\nß", False),
        (b"\xfe\xff" + "é".encode("utf-16-be"), "é", False),
        ("é".encode("utf-32"), "é", False),
        ("café".encode("latin-1"), "café", True),
        ("日本語".encode() + b"\xff", "日本語\ufffd", True),
        (b"a\rb\r\nc\x0cd\x0b\x1c\xc2\x85e", "a\nb\nc\x0cd\x0b\x1c\x85e", False),
        (b"", "", False),
    ],
)
def test_text_of_any_origin(data: bytes, text: str, guessed: bool) -> None:
    assert decode_text(data) == files.TextFile(text, guessed)


@pytest.mark.parametrize("data", [b"\0", b"text" * 5000 + b"\0", "no mark".encode("utf-16-le"), b"\xff\xfea"])
def test_binary_is_not_text(data: bytes) -> None:
    with pytest.raises(NotTextError):
        decode_text(data)


@posix
def test_read_text_waits_for_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    start = time.monotonic()
    with pytest.raises(NotTextError, match="regular"):
        read_text(tmp_path / "pipe.txt")
    assert time.monotonic() - start < 5
    with pytest.raises(OSError):
        read_text(tmp_path / "gone.txt")
    with pytest.raises((NotTextError, OSError)):
        read_text(tmp_path)


# -------------------------------------------------------------------------------------------------- messages


def test_messages() -> None:
    assert shorten(" one\n  line ", 80) == "one line"
    assert shorten("a bc def", 7) == "a bc..."
    assert shorten("\x1b[31m\udc80", 80) == "\\x1b[31m\\udc80"
    assert first_line(ValueError("\n one \n two")) == "ValueError: one"
    assert first_line(KeyError()) == "KeyError"
    assert check_unicode("𝔘") == "𝔘"
    with pytest.raises(ValueError, match=r"Item 3 holds the lone surrogate U\+D800 at character 1, which"):
        check_unicode("a\ud800", "Item 3")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a\r\nb\n\nc", ["a", "b", "", "c"]),
        (b"a\x0bb\x0cc\x1cd\xc2\x85e\xe2\x80\xa8f\n", ["a\x0bb\x0cc\x1cd\x85e\u2028f"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a", "\ufeffb"]),
        (b"\xef\xbb\xbf", [""]),
        ("é\nü".encode("utf-16"), ["é", "ü"]),
        ("é\r\n".encode("utf-32"), ["é"]),
    ],
)
def test_lines_end_where_an_editor_ends_them(data: bytes, expected: list[str]) -> None:
    assert [decode_line(line) for line in raw_lines(io.BytesIO(data))] == expected


def test_a_line_that_is_no_text() -> None:
    with pytest.raises(NotTextError, match="invalid continuation byte at byte 3 of the line"):
        decode_line(b"ab\xe9cd")
