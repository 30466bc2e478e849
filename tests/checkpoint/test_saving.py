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
texts = np.load(sys.argv[1], allow_pickle=True).tolist()
for folder in sys.argv[2:]:
    np.save(folder + ".npy", SentenceTransformer(folder, device="cpu").encode(texts))
"""


def test_stock_sentence_transformers_needs_nothing_of_ours(
    mini_checkpoint: Path, qwen2_checkpoint: Path, tmp_path: Path
) -> None:
    saved = [str(tmp_path / name) for name in ("mini", "qwen2")]
    for checkpoint, folder in zip((mini_checkpoint, qwen2_checkpoint), saved, strict=True):
        ReasoningEmbedder(checkpoint, device="cpu").save_pretrained(folder)
    texts = ["a river", "", "long " * 900, "<|embed_token|> [SEP]<|im_end|>", "emoji 🎉 and עברית"]
    np.save(tmp_path / "texts.npy", np.array(texts, dtype=object))
    # One process for both: most of its time goes into imports.
    arguments = [sys.executable, "-c", STOCK, str(tmp_path / "texts.npy"), *saved]
    subprocess.run(arguments, check=True, cwd=tmp_path, capture_output=True)
    for folder in saved:
        ours = ReasoningEmbedder(folder, device="cpu", on_truncate="ignore").encode(texts, reason=False)
        np.testing.assert_allclose(np.load(folder + ".npy"), ours, atol=1e-5)


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
