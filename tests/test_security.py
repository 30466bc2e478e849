"""What SECURITY.md promises of checkpoints that a stranger wrote; texts are in test_conversation.py."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoint import CheckpointError, locate

CUSTOM_CODE = """
from pathlib import Path
Path(__file__).with_name("was-run").touch()
from transformers import Qwen2Config as Config, Qwen2ForCausalLM as Model, PreTrainedTokenizerFast as Fast
"""


class Bomb:
    """Pickled, it writes a file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder / "was-run"),)


def test_pickled_weights_run_nothing(released_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(released_checkpoint, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Bomb(folder)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        ReasoningEmbedder(str(folder), device="cpu")
    assert not (folder / "was-run").exists()


@pytest.mark.parametrize(
    "file, classes",
    [
        ("config.json", {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "code.Fast"]}),
    ],
)
def test_code_beside_the_weights_is_not_run(
    file: str, classes: dict[str, object], released_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(released_checkpoint, tmp_path / "custom")
    (folder / "code.py").write_text(CUSTOM_CODE)
    settings = json.loads((folder / file).read_text()) | {"auto_map": classes}
    # A kind that transformers does not know: only the code in the folder could build it.
    settings |= {"model_type": "unheard-of"} if file == "config.json" else {"tokenizer_class": "Fast"}
    (folder / file).write_text(json.dumps(settings))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    asked: list[str] = []
    # Not even somebody at a terminal who agrees to everything is asked.
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    with contextlib.suppress(CheckpointError):
        ReasoningEmbedder(str(folder), device="cpu")
    assert asked == []
    assert not list(tmp_path.rglob("was-run"))


def test_of_a_hub_repository_only_data_is_fetched() -> None:
    code = [pattern for pattern in locate._DOWNLOADED_FILES if pattern.endswith((".py", ".bin", ".pkl", ".pt"))]
    assert code == ["example.py"] and "*" not in locate._DOWNLOADED_FILES
