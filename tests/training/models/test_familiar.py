"""Where a thinker knows its way: near what it was trained on it moves vectors, elsewhere it leaves them alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoint import CheckpointError
from searchr3_embed.question_side import Familiar
from training.models import familiar

KNOWN = ["how do i read a csv file", "what is a river?", "symptoms of a common cold"]
FOREIGN = "interest rates and inflation"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "s.jsonl"
    path.write_text("".join(json.dumps({"query": query, "positives": ["a"]}) + "\n" for query in KNOWN))
    return path


def test_familiar_questions_move_and_others_keep_their_bits(
    thinker_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    plain = ReasoningEmbedder(thinker_checkpoint, device="cpu")
    options = ["--foreign", "0.99999", "--known", "0.999999", "--scale", "2", "--out", str(tmp_path / "out")]
    assert familiar.main(["--checkpoint", str(thinker_checkpoint), "--data", str(data), *options]) == 0
    gated = ReasoningEmbedder(tmp_path / "out", device="cpu")
    side = gated.question_side
    assert side is not None and side.familiar is not None and side.familiar.centres.shape[0] == len(KNOWN)
    # Stored in half precision, so a centre is a little beside its question.
    gated.question_side.familiar = Familiar(side.familiar.centres, 0.999, 0.9995)  # type: ignore[union-attr]
    assert plain.question_side is not None
    plain.question_side.projection = plain.question_side.projection * 2
    moving = [r.text for r in plain.reason(KNOWN) if r.finish_reason != "nothing_to_add"]
    assert moving
    np.testing.assert_allclose(gated.encode_query(moving), plain.encode_query(moving), atol=1e-5)
    np.testing.assert_array_equal(gated.encode_query(FOREIGN), gated.encode_query(FOREIGN, reason=False))
    np.testing.assert_array_equal(gated.encode_document(KNOWN), plain.encode_document(KNOWN))


def test_the_share_grows_from_foreign_to_known() -> None:
    cosines = torch.tensor([0.3, 0.5, 0.7, 0.9, 1.0])
    vectors = torch.stack([cosines, torch.zeros(5)], dim=1)
    # What is left of each unit vector points where no centre is.
    vectors = torch.cat([vectors, (1 - cosines**2).sqrt()[:, None]], dim=1)
    gate = Familiar(torch.eye(3)[:2], 0.5, 0.9)
    torch.testing.assert_close(gate.shares(vectors), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]), atol=1e-6, rtol=0)


def test_what_does_not_fit_is_said(
    thinker_checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", str(data), "--out", str(tmp_path / "out")]
    assert familiar.main(["--checkpoint", str(tmp_path), *common]) == 2
    assert "no encoder with a thinker" in capsys.readouterr().err
    assert familiar.main(["--checkpoint", str(thinker_checkpoint), *common, "--foreign", "0.9"]) == 2
    assert "foreign must be below known" in capsys.readouterr().err
    assert familiar.main(["--checkpoint", str(thinker_checkpoint), *common]) == 0
    path = tmp_path / "out" / "thinker" / "projection.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "familiar": tensors["familiar"][:, :-1].contiguous()}, path)
    with pytest.raises(CheckpointError, match="familiar questions that do not fit"):
        ReasoningEmbedder(tmp_path / "out", device="cpu")


def test_each_source_that_is_named_has_centres_of_its_own(
    thinker_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A source of many questions leaves a small one its centres.
    for name, asked in (("many", [f"question {n}" for n in range(40)]), ("few", KNOWN), ("other", [FOREIGN])):
        lines = [json.dumps({"query": query, "positives": ["a"]}) + "\n" for query in asked]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    files = [str(path) for path in sorted(tmp_path.glob("*.jsonl"))]
    common = ["--checkpoint", str(thinker_checkpoint), "--data", *files, "--out", str(tmp_path / "out")]
    assert familiar.main([*common, "--sources", "few", "many", "--centres", "4"]) == 0
    embedder = ReasoningEmbedder(tmp_path / "out", device="cpu")
    assert embedder.question_side is not None and embedder.question_side.familiar is not None
    found = embedder.question_side.familiar.centres.numpy()
    assert len(found) == 4 + len(KNOWN)
    nearest = (embedder.encode_query(KNOWN, reason=False, normalize_embeddings=True) @ found.T).max(axis=1)
    np.testing.assert_allclose(nearest, 1, atol=1e-3)
    assert familiar.main([*common, "--sources", "few", "lost"]) == 2
    assert "No file of --data is the source lost; there are few, many, other." in capsys.readouterr().err
