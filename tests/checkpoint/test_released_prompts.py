"""Released Search-R3 checkpoints: their prompts are read from a Python file that is never run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoint import CheckpointError, released_prompts
from tests.checkpoint.conftest import Copy


def test_released_layout_reads_its_prompts_without_running_them(released_checkpoint: Path) -> None:
    embedder = ReasoningEmbedder(released_checkpoint, device="cpu")
    prompts = embedder.conversation.prompts
    assert prompts.direct_system is not None and "semantic vector" in prompts.direct_system
    assert prompts.reasoning_system is not None and "core concepts" in prompts.reasoning_system
    assert type(embedder.causal_lm).__name__ == "Qwen2ForCausalLM"
    assert embedder.max_seq_length == 512  # the model has no more positions


def test_bare_checkpoint_never_becomes_a_last_token_embedder(released_checkpoint: Path, copy_of: Copy) -> None:
    folder = copy_of(released_checkpoint)
    (folder / "example.py").unlink()
    with pytest.raises(CheckpointError, match="system_prompts="):
        ReasoningEmbedder(folder)
    given = {"direct": "Represent it.", "reasoning": "Think about it."}
    embedder = ReasoningEmbedder(folder, device="cpu", system_prompts=given)
    assert embedder.conversation.prompts.reasoning_system == "Think about it."
    assert (
        np.abs(embedder.encode("river") - embedder.encode("river", reason=True, max_reasoning_tokens=4)).max() > 1e-4
    )


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("EMBEDDING = 'x'\n", "GENERATION"),
        ("EMBEDDING = open('x').read()\nGENERATION = 'y'\n", "EMBEDDING"),
        ("def broken(:\n", "can't be parsed"),
    ],
)
def test_damaged_examples_are_named(tmp_path: Path, source: str, named: str) -> None:
    (tmp_path / "example.py").write_text(source)
    with pytest.raises(CheckpointError, match=named):
        released_prompts.read_prompts(tmp_path / "example.py")
