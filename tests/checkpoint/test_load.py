"""What loads, and with which words the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoint import CheckpointError
from tests.checkpoint.conftest import Copy


@pytest.mark.parametrize("given", [{"direct": "x"}, {"direct": "x", "reasoning": 3}, "text", {}])
def test_wrong_system_prompts_are_named(released_checkpoint: Path, given: object) -> None:
    with pytest.raises(ValueError, match="system_prompts must hold"):
        ReasoningEmbedder(released_checkpoint, system_prompts=given)  # type: ignore[arg-type]


def test_language_model_that_never_learned_to_embed(released_checkpoint: Path, copy_of: Copy) -> None:
    folder = copy_of(released_checkpoint)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("<|embed_token|>", "<|other_token|>"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="not trained to embed.*training.sft"):
        ReasoningEmbedder(folder)


def test_wrong_embed_token(mini_checkpoint: Path, copy_of: Copy) -> None:
    folder = copy_of(mini_checkpoint)
    prompts = json.loads((folder / "conversation.json").read_text())
    prompts.update(embed_token="<|nope|>", direct_answer="x <|nope|>")
    (folder / "conversation.json").write_text(json.dumps(prompts))
    with pytest.raises(CheckpointError, match=r"'<\|nope\|>'"):
        ReasoningEmbedder(folder)


@pytest.mark.parametrize(
    ("file", "named"),
    [("model.safetensors", "no weights"), ("tokenizer.json", "no tokenizer"), ("config.json", "no config.json")],
)
def test_missing_files_are_named(mini_checkpoint: Path, copy_of: Copy, file: str, named: str) -> None:
    folder = copy_of(mini_checkpoint)
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=named):
        ReasoningEmbedder(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", "conversation.json"])
def test_truncated_files_are_refused(mini_checkpoint: Path, copy_of: Copy, file: str) -> None:
    folder = copy_of(mini_checkpoint)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="copy"):
        ReasoningEmbedder(folder)


def test_weights_that_lack_a_part_are_refused(mini_checkpoint: Path, copy_of: Copy) -> None:
    folder = copy_of(mini_checkpoint)
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "cls.predictions.transform" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="weights are missing"):
        ReasoningEmbedder(folder)


def test_bidirectional_encoder_is_refused(mini_checkpoint: Path, copy_of: Copy) -> None:
    folder = copy_of(mini_checkpoint)
    config = json.loads((folder / "config.json").read_text())
    config["is_decoder"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="bidirectional"):
        ReasoningEmbedder(folder)
