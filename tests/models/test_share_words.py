"""An encoder and the thinker that shares its layers hold one copy of the word embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from searchr3_embed import ReasoningEmbedder


def words(model: Any) -> torch.Tensor:
    return model.get_input_embeddings().weight


def test_embeddings_are_held_once_and_saved_twice(encoder: Path, thinker_checkpoint: Path, tmp_path: Path) -> None:
    for embedder in (
        ReasoningEmbedder.from_encoder(encoder, device="cpu"),
        ReasoningEmbedder(str(thinker_checkpoint), device="cpu"),
    ):
        own, longer = words(embedder[0].auto_model), words(embedder.causal_lm)
        assert own.data_ptr() == longer.data_ptr() and len(longer) == len(own) + 2
    vectors = embedder.encode_query(["tides", "a slow river"]), embedder.encode_document(["tides"])
    embedder.save_pretrained(str(tmp_path / "again"))
    weights = (tmp_path / "again" / "model.safetensors").stat().st_size
    assert weights == (encoder / "model.safetensors").stat().st_size
    again = ReasoningEmbedder(str(tmp_path / "again"), device="cpu")
    np.testing.assert_array_equal(again.encode_query(["tides", "a slow river"]), vectors[0])
    np.testing.assert_array_equal(again.encode_document(["tides"]), vectors[1])


def test_what_was_converted_is_apart(thinker_checkpoint: Path) -> None:
    embedder = ReasoningEmbedder(str(thinker_checkpoint), device="cpu").double()
    own, longer = words(embedder[0].auto_model), words(embedder.causal_lm)
    assert own.data_ptr() != longer.data_ptr()
    assert torch.equal(own, longer[: len(own)])
