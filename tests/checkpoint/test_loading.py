"""Any checkpoint: what loads, and with which words the rest is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoint import loading
from searchr3_embed.checkpoint.loading import CheckpointError, read_released_prompts


@pytest.fixture
def copy_of(tmp_path: Path):  # noqa: ANN201 - a factory
    def make(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return make


def test_released_layout_reads_its_prompts_without_running_them(released_checkpoint: Path) -> None:
    embedder = ReasoningEmbedder(released_checkpoint, device="cpu")
    prompts = embedder.conversation.prompts
    assert prompts.direct_system is not None and "semantic vector" in prompts.direct_system
    assert prompts.reasoning_system is not None and "core concepts" in prompts.reasoning_system
    assert type(embedder.causal_lm).__name__ == "Qwen2ForCausalLM"
    assert embedder.max_seq_length == 512  # the model has no more positions


def test_bare_checkpoint_never_becomes_a_last_token_embedder(released_checkpoint: Path, copy_of) -> None:
    folder = copy_of(released_checkpoint)
    (folder / "example.py").unlink()
    with pytest.raises(CheckpointError, match="system_prompts="):
        ReasoningEmbedder(folder)
    given = {"direct": "Represent it.", "reasoning": "Think about it."}
    embedder = ReasoningEmbedder(folder, device="cpu", system_prompts=given)
    assert embedder.conversation.prompts.reasoning_system == "Think about it."
    assert (
        np.abs(embedder.encode("river") - embedder.encode("river", reason=True, max_reasoning_tokens=4)).max() > 1e-4
    )


@pytest.mark.parametrize("given", [{"direct": "x"}, {"direct": "x", "reasoning": 3}, "text", {}])
def test_wrong_system_prompts_are_named(released_checkpoint: Path, given: object) -> None:
    with pytest.raises(ValueError, match="system_prompts must hold"):
        ReasoningEmbedder(released_checkpoint, system_prompts=given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("EMBEDDING = 'x'\n", "GENERATION"),
        ("EMBEDDING = open('x').read()\nGENERATION = 'y'\n", "EMBEDDING"),
        ("def broken(:\n", "can't be parsed"),
    ],
)
def test_damaged_examples_are_named(tmp_path: Path, source: str, named: str) -> None:
    (tmp_path / "example.py").write_text(source)
    with pytest.raises(CheckpointError, match=named):
        read_released_prompts(tmp_path / "example.py")


def test_language_model_that_never_learned_to_embed(released_checkpoint: Path, copy_of) -> None:
    folder = copy_of(released_checkpoint)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("<|embed_token|>", "<|other_token|>"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="not trained to embed.*training.sft"):
        ReasoningEmbedder(folder)


def test_wrong_embed_token(mini_checkpoint: Path, copy_of) -> None:
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
def test_missing_files_are_named(mini_checkpoint: Path, copy_of, file: str, named: str) -> None:
    folder = copy_of(mini_checkpoint)
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=named):
        ReasoningEmbedder(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", "conversation.json"])
def test_truncated_files_are_refused(mini_checkpoint: Path, copy_of, file: str) -> None:
    folder = copy_of(mini_checkpoint)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="copy"):
        ReasoningEmbedder(folder)


def test_weights_that_lack_a_part_are_refused(mini_checkpoint: Path, copy_of) -> None:
    folder = copy_of(mini_checkpoint)
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "cls.predictions.transform" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="weights are missing"):
        ReasoningEmbedder(folder)


def test_bidirectional_encoder_is_refused(mini_checkpoint: Path, copy_of) -> None:
    folder = copy_of(mini_checkpoint)
    config = json.loads((folder / "config.json").read_text())
    config["is_decoder"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="bidirectional"):
        ReasoningEmbedder(folder)


@pytest.mark.parametrize("name", ["no-such-alias", "./no/such/folder", "a/b/c", "", "  ", "C:\\models\\x"])
def test_unknown_names_list_what_is_accepted(name: str) -> None:
    with pytest.raises(CheckpointError, match="searchr3.*folder.*hub id"):
        ReasoningEmbedder(name)


def test_a_file_is_no_folder(mini_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file"):
        ReasoningEmbedder(mini_checkpoint / "config.json")
    with pytest.raises(ValueError, match="None"):
        ReasoningEmbedder(None)  # type: ignore[arg-type]


def test_offline_hub_id_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match="network.*folder.*'searchr3'"):
        ReasoningEmbedder("searchr3-small")
    assert time.perf_counter() - began < 2
    # The same without the offline switch, on a machine whose network leads nowhere.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("urllib.request.getproxies", dict)
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match="network"):
        ReasoningEmbedder("owner/model")
    assert time.perf_counter() - began < 2


def test_name_resolution_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        given_up.wait(5)
        raise OSError

    monkeypatch.setattr("socket.create_connection", hang)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    began = time.perf_counter()
    assert not loading._hub_answers()
    assert time.perf_counter() - began < 2
    given_up.set()


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
