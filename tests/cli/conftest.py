"""Fixtures of the tests of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.search import python_docs
from searchr3_embed.search.passages import Passage
from tests.cli.command import Command


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], mini_checkpoint: Path, tmp_path: Path) -> Command:
    return Command(capsys, mini_checkpoint, tmp_path / "cache")


@pytest.fixture(scope="module")
def embedder(mini_checkpoint: Path) -> ReasoningEmbedder:
    return ReasoningEmbedder(mini_checkpoint, device="cpu")


@pytest.fixture
def small_stdlib(monkeypatch: pytest.MonkeyPatch) -> list[Passage]:
    names = ["json.loads", "subprocess.run", "random.choice", "tempfile.TemporaryDirectory", "functools.cache", "zip"]
    passages = [Passage(name, name, f"{name}(x)\nDoes what {name} does, and returns it.", True) for name in names]
    monkeypatch.setattr(python_docs, "read_stdlib", lambda: passages)
    return passages
