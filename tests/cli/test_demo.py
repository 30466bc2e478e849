"""``searchr3 demo``."""

from __future__ import annotations

import pytest

from searchr3_embed.cli import demo
from searchr3_embed.search.passages import Passage
from tests.cli.command import Command


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
    for question in demo.FAMILIAR:
        assert sum(line.startswith(question) for line in lines) == 1
    assert any(line.startswith("with reasoning, ") and "without, " in line for line in lines) == (columns > 60)
    assert "6 entries, indexed in " in out
    assert "median time per question: " in out
    assert "6 entries, vectors from the cache in " in command("demo").out
