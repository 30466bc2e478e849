"""What goes to the hub: both kinds of checkpoint, whole, with a card. The hub is not asked."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder

TEXTS = ["what is a river?", "interest rates"]


class FakeHub:
    """Takes what is uploaded."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []

    def __call__(self, token: str | None = None) -> FakeHub:
        return self

    def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
        self.asked.append((repo_id, options))
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, repo_id: str, folder_path: str, **options: Any) -> SimpleNamespace:
        shutil.copytree(folder_path, self.folder)
        return SimpleNamespace(commit_url=f"hub/{repo_id}", pr_url=None)


@pytest.mark.parametrize("kind", ["qwen2_checkpoint", "thinker_checkpoint"])
def test_both_kinds_arrive_whole(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "hub")
    embedder = ReasoningEmbedder(request.getfixturevalue(kind), device="cpu")
    vars(embedder)["_model_card_text"] = None
    with monkeypatch.context() as patch:
        patch.setattr("sentence_transformers.base.model.HfApi", hub)
        patch.setattr("sentence_transformers.base.model.load_file_path", lambda *_, **__: None)  # no card there yet
        url = embedder.push_to_hub("someone/thinking-model", private=True)
    assert url == "hub/someone/thinking-model" and hub.asked[0][0] == "someone/thinking-model"

    again = ReasoningEmbedder(hub.folder, device="cpu")
    np.testing.assert_allclose(again.encode_query(TEXTS), embedder.encode_query(TEXTS), atol=1e-5)
    stock = SentenceTransformer(str(hub.folder), device="cpu")
    np.testing.assert_allclose(stock.encode_document(TEXTS), embedder.encode_document(TEXTS), atol=1e-5)

    card = (hub.folder / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "sentence-transformers" and "reasoning" in front["tags"]
    assert 'ReasoningEmbedder("someone/thinking-model")' in card and "Training data and licence" in card
    assert ("which nobody has changed" in card) == (kind == "thinker_checkpoint")


def test_a_card_that_came_with_the_weights_stays(thinker_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "with-card"
    shutil.copytree(thinker_checkpoint, folder)
    (folder / "README.md").write_text("---\ntags: [mine]\n---\n# My own card\n", encoding="utf-8")
    ReasoningEmbedder(folder, device="cpu").save_pretrained(str(tmp_path / "out"))
    assert "# My own card" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_joined_model_has_no_card_of_its_encoder(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    (folder / "README.md").write_text("# The encoder's card\n", encoding="utf-8")
    ReasoningEmbedder.from_encoder(folder, device="cpu").save_pretrained(str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "The encoder's card" not in card and "Documents are embedded by encoder" in card
