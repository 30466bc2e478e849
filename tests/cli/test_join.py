"""``searchr3 join``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder
from tests.cli.command import Command


def test_join_writes_the_encoder_and_an_untrained_thinker(
    command: Command, encoder_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    code, printed, err = command("join", encoder_folder, "--name", "my-encoder", "--out", out)
    assert (code, printed) == (0, "") and err.count("\n") == 1 and "my-encoder and its thinker" in err

    embedder = ReasoningEmbedder(out, device="cpu")
    assert embedder.encoder_name == "my-encoder"
    texts = ["why is the sky blue", "the river"]
    stock = SentenceTransformer(str(encoder_folder), device="cpu").encode(texts)
    np.testing.assert_array_equal(SentenceTransformer(str(out), device="cpu").encode(texts), stock)
    np.testing.assert_allclose(embedder.encode_query(texts), stock, atol=1e-5)

    assert "is not empty" in command.fails("join", encoder_folder, "--out", out)
    assert "no sentence-transformers model" in command.fails("join", command.model, "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_join_takes_a_language_model(
    command: Command, encoder_folder: Path, qwen2_checkpoint: Path, tmp_path: Path
) -> None:
    assert command("join", encoder_folder, "--thinker", qwen2_checkpoint, "--out", tmp_path / "mine").code == 0
    assert ReasoningEmbedder(tmp_path / "mine", device="cpu").reason("why?").prompt_tokens > 0
