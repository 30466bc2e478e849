"""A saved folder: stock libraries load it, and what stops a saving leaves the old one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.models.causal_transformer import CausalTransformer

STOCK = """
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "searchr3_embed":
            raise ImportError("searchr3_embed must not be needed")

sys.meta_path.insert(0, Refuse())
import numpy as np
from sentence_transformers import SentenceTransformer
texts = np.load(sys.argv[2], allow_pickle=True).tolist()
np.save(sys.argv[3], SentenceTransformer(sys.argv[1], device="cpu").encode(texts))
"""


@pytest.mark.parametrize("checkpoint", ["mini_checkpoint", "qwen2_checkpoint"])
def test_stock_sentence_transformers_needs_nothing_of_ours(
    request: pytest.FixtureRequest, tmp_path: Path, checkpoint: str
) -> None:
    embedder = ReasoningEmbedder(request.getfixturevalue(checkpoint), device="cpu", on_truncate="ignore")
    embedder.save_pretrained(str(tmp_path / "saved"))
    texts = ["a river", "", "long " * 900, "<|embed_token|> [SEP]<|im_end|>", "emoji 🎉 and עברית"]
    np.save(tmp_path / "texts.npy", np.array(texts, dtype=object))
    arguments = [str(tmp_path / "saved"), str(tmp_path / "texts.npy"), str(tmp_path / "vectors.npy")]
    subprocess.run([sys.executable, "-c", STOCK, *arguments], check=True, cwd=tmp_path, capture_output=True)
    vectors = np.load(tmp_path / "vectors.npy")
    np.testing.assert_allclose(
        vectors,
        ReasoningEmbedder(tmp_path / "saved", device="cpu", on_truncate="ignore").encode(texts, reason=False),
        atol=1e-5,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_what_stops_a_saving_leaves_the_old_folder(
    mini_checkpoint: Path, qwen2_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "saved"
    ReasoningEmbedder(mini_checkpoint, device="cpu").save_pretrained(str(folder))
    (folder / "mine.txt").write_text("stays", encoding="utf-8")
    before = contents(folder)
    other = ReasoningEmbedder(qwen2_checkpoint, device="cpu")
    save = CausalTransformer.save

    def stopped(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(CausalTransformer, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(str(folder))
    assert contents(folder) == before
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    monkeypatch.undo()
    other.save_pretrained(str(folder))
    assert (folder / "mine.txt").read_text(encoding="utf-8") == "stays"
    assert type(ReasoningEmbedder(folder, device="cpu").causal_lm) is type(other.causal_lm)


def test_weights_in_another_layout_do_not_outlive_a_saving(
    mini_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sharded saving over a whole one, and the other way round: what is loaded is what was saved last."""
    embedder = ReasoningEmbedder(mini_checkpoint, device="cpu")
    embedder.save_pretrained(str(tmp_path))
    whole = {file.name for file in tmp_path.iterdir()}
    plain = type(embedder.causal_lm).save_pretrained
    monkeypatch.setattr(
        type(embedder.causal_lm),
        "save_pretrained",
        lambda model, folder: plain(model, folder, max_shard_size="20KB"),
    )
    embedder.save_pretrained(str(tmp_path))
    sharded = {file.name for file in tmp_path.iterdir()}
    assert "model.safetensors" not in sharded and "model.safetensors.index.json" in sharded
    listed = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert {name for name in sharded if name.startswith("model-")} == set(listed["weight_map"].values())
    again = ReasoningEmbedder(tmp_path, device="cpu")
    np.testing.assert_array_equal(again.encode(["a river"]), embedder.encode(["a river"]))
    monkeypatch.undo()
    embedder.save_pretrained(str(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == whole
