"""The ``searchr3`` command in process, as a shell would see it, with a small random model."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from searchr3_embed.cli import main as cli


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


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
