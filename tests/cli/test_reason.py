"""``searchr3 reason``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.kinds import encoder_with_thinker
from tests.cli.command import Command


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


def test_nothing_to_add_is_said_plainly(
    command: Command, joined_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, small_stdlib: object
) -> None:
    monkeypatch.setattr(encoder_with_thinker, "finish_reason", lambda generation: "nothing_to_add")
    model = ("--model", joined_checkpoint)
    out = command("reason", "why?", *model).out
    assert "reasoning: (nothing to add)\nfinish:    nothing_to_add (the vector is the encoder's)\n" in out
    assert "reasoning: (nothing to add)\n" in command("search", "--stdlib", "why?", *model).out
    assert command("demo", *model).out.count("thinks:  (nothing to add)\n") == 6


def test_nothing_but_the_answer_is_printed(mini_checkpoint: Path) -> None:
    """In a process of its own, where libraries report on what they load."""
    arguments = ["reason", "why?", "--json", "--model", str(mini_checkpoint)]
    result = subprocess.run(
        [sys.executable, "-m", "searchr3_embed", *arguments], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout)["text"] == "why?"
    assert result.stderr == ""
