"""What the tests of both stages need for a thinker beside an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from searchr3_embed.engine import decode
from searchr3_embed.engine.one_pass import OnePassThinker
from tests.training.short_runs import common_settings
from training.shared.embedder_trainer import without_wrapper
from training.shared.questions import Questions, moved_vectors

ADAPTERS = {"use_peft": True, "lora_r": 4, "lora_alpha": 8}


class Stop(Exception):
    """In the place of a kill."""


def thinker_settings(encoder: Path, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a short run; None leaves one out."""
    values = {
        **common_settings(encoder, data, out),
        "model_name_or_path": None,
        "encoder": str(encoder),
        "query_length": 40,
        "stay_weight": 1.0,
        **ADAPTERS,
        **changes,
    }
    return {name: value for name, value in values.items() if value is not None}


def thinker_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of an exported thinker, P among them."""
    return {
        f"{path.name}:{name}": value
        for path in sorted((folder / "thinker").glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def assert_same_thinker(one: Path, other: Path) -> None:
    first, second = thinker_weights(one), thinker_weights(other)
    assert first.keys() == second.keys() and len(first) > 1
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def keep_vectors(monkeypatch: pytest.MonkeyPatch, module: Any) -> dict[str, np.ndarray]:
    """Lets the next run note, before it exports, the vectors that its model in memory gives: question -> vector."""
    kept: dict[str, np.ndarray] = {}
    plain = module.export_thinker

    def export(trainer: Any, embedder: Any, args: Any) -> Path:
        questions: Questions = getattr(trainer, "questions", None) or trainer.rollouts.questions
        texts = list(questions.vectors)[:20]
        model: Any = without_wrapper(trainer.model).eval()
        talk = questions.conversation
        with torch.no_grad():
            written = decode.think(
                model if questions.encoder is None else OnePassThinker(questions.encoder, model),
                talk.reasoning_turns(talk.text_ids(texts)),
                embed_token_id=talk.embed_token_id,
                max_new_tokens=talk.default_max_reasoning_tokens,
                stop_token_ids=decode.stop_token_ids(model),
                distinct=talk.prompts.distinct_tokens,
            )
            base = torch.stack([questions.vectors[text] for text in texts])
            moved = moved_vectors(model, base, written, questions.normalise)
        kept.update(zip(texts, moved.numpy(), strict=True))
        return plain(trainer, embedder, args)

    monkeypatch.setattr(module, "export_thinker", export)
    return kept
