"""The folder that a package carries: half the size, the same vectors but for rounding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder
from training.evaluate.models import teacher_source
from training.models import packaged

TEXTS = ["what causes kidney stones?", "def add(a, b): return a + b", "A glacier is a slow river of ice."]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    embedder = ReasoningEmbedder.from_encoder(teacher_source(), device="cpu")
    assert embedder.question_side is not None
    torch.manual_seed(0)
    embedder.question_side.projection = torch.randn_like(embedder.question_side.projection) * 0.02
    embedder.save_pretrained(str(folder), create_model_card=False)
    return folder


def test_the_encoder_is_narrow_on_disk_and_float32_in_memory(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packaged"
    out.mkdir()
    (out / "README.md").write_text("the card")
    assert packaged.main(["--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    assert "lowest cosine to the encoder's vectors 0.99999" in capsys.readouterr().out.replace("1.0000000", "0.99999")
    assert (out / "README.md").read_text() == "the card"
    assert {value.dtype for value in load_file(out / "model.safetensors").values() if value.is_floating_point()} == {
        torch.float16
    }
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    stock = SentenceTransformer(str(out), device="cpu")
    assert stock.dtype == torch.float32
    original = SentenceTransformer(teacher_source(), device="cpu").encode(TEXTS)
    assert ((stock.encode(TEXTS) * original).sum(axis=1) >= 0.99999).all()
    wide, narrow = ReasoningEmbedder(checkpoint, device="cpu"), ReasoningEmbedder(out, device="cpu")
    assert [r.reasoning for r in wide.reason(TEXTS)] == [r.reasoning for r in narrow.reason(TEXTS)]
    assert ((wide.encode_query(TEXTS) * narrow.encode_query(TEXTS)).sum(axis=1) >= 0.9999).all()
    assert np.abs(narrow.encode_query(TEXTS) - narrow.encode_document(TEXTS)).max() > 0.01


def test_what_can_not_be_packed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert packaged.main(["--checkpoint", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no encoder with a thinker" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
