"""Joining an encoder and a thinker, and loading both: what does not fit is refused in one sentence."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoint import CheckpointError, new_thinker
from tests import tiny, tiny_encoders
from tests.checkpoint.conftest import Copy

KINDS = ["thinker_checkpoint", "language_model_thinker_checkpoint"]
# Settings of a language model's generation that say nothing which its configuration does not.
NOT_NEEDED = {"generation_config.json"}


def refused(load: Callable[[], Any], *named: str, error: type[Exception] = CheckpointError) -> None:
    """Checks that a call fails with one sentence that holds the given words."""
    with pytest.raises(error) as found:
        load()
    message = str(found.value)
    assert "\n" not in message and message.endswith((".", ")"))
    assert [word for word in named if word not in message] == [], message


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, copy_of: Copy) -> Path:
    """A copy of a checkpoint that may be damaged."""
    return copy_of(request.getfixturevalue(request.param))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "cut"])
def test_a_damaged_file_of_the_thinker(folder: Path, damage: str) -> None:
    files = sorted(file for file in (folder / "thinker").iterdir() if file.name not in NOT_NEEDED)
    assert len(files) >= 6
    for file in files:
        whole = file.read_bytes()
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes({"empty": b"", "garbage": b"\xff{no file", "cut": whole[: len(whole) // 2]}[damage])
        before = contents(folder)
        if file.suffix == ".jinja" and damage == "cut":
            file.write_bytes(b"{% for")
        try:
            refused(lambda: ReasoningEmbedder(folder, device="cpu"), str(folder))
        except pytest.fail.Exception:
            pytest.fail(f"{file.name}, {damage}: nothing was raised")
        if file.suffix != ".jinja":
            assert contents(folder) == before
        file.write_bytes(whole)
    ReasoningEmbedder(folder, device="cpu")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "can't be read"),
        ("", "can't be read"),
        ("[]", "can't be read"),
        ("null", "can't be read"),
        ('{"kind": "encoder-with-thinker"}', "can't be read"),
        ('{"kind": "encoder-with-thinker", "format": "new"}', "can't be read"),
        ('{"kind": "encoder-with-thinker", "format": 2}', "Install a newer searchr3-embed"),
        ('{"kind": "two-thinkers", "format": 1}', "'two-thinkers'"),
        ('{"kind": "encoder-with-thinker", "format": 1, "encoder": "x", "thinker": "encoder"}', "can't be read"),
    ],
)
def test_settings_that_are_none(thinker_checkpoint: Path, copy_of: Copy, text: str, named: str) -> None:
    folder = copy_of(thinker_checkpoint)
    (folder / "searchr3.json").write_text(text, encoding="utf-8")
    refused(lambda: ReasoningEmbedder(folder, device="cpu"), named, "searchr3.json")


@pytest.mark.parametrize("probes", ["words", [["a"]], [[1.0], [1.0, 2.0]], None, {}, [[]]])
def test_probes_that_are_none(thinker_checkpoint: Path, copy_of: Copy, probes: Any) -> None:
    folder = copy_of(thinker_checkpoint)
    settings = json.loads((folder / "searchr3.json").read_text(encoding="utf-8"))
    (folder / "searchr3.json").write_text(json.dumps({**settings, "probes": probes}), encoding="utf-8")
    refused(lambda: ReasoningEmbedder(folder, device="cpu"), "searchr3.json", "can't be read")


def test_a_projection_of_other_dimensions(folder: Path) -> None:
    path = folder / "thinker" / "projection.safetensors"
    stored = load_file(path)["projection"]
    for wrong in (stored.T.contiguous()[:-1], torch.zeros(47, 32), torch.zeros(48)):
        save_file({"projection": wrong}, path)
        needed = str(tuple(stored.shape))
        refused(lambda: ReasoningEmbedder(folder, device="cpu"), str(tuple(wrong.shape)), needed)
    save_file({"p": stored}, path)
    refused(lambda: ReasoningEmbedder(folder, device="cpu"), "projection.safetensors", "None")
    save_file({"projection": stored * float("nan")}, path)
    refused(lambda: ReasoningEmbedder(folder, device="cpu"), "projection.safetensors", "not finite")


def test_an_encoder_of_another_size(folder: Path, tmp_path: Path) -> None:
    other = tiny_encoders.save_bert(tmp_path / "other", hidden=32)
    shutil.copytree(other, folder, dirs_exist_ok=True)
    refused(lambda: ReasoningEmbedder(folder, device="cpu"), str(folder))


def test_differences_of_another_encoder(thinker_checkpoint: Path, copy_of: Copy) -> None:
    folder = copy_of(thinker_checkpoint)
    path = folder / "thinker" / "differences.safetensors"
    stored = load_file(path)
    for name, tensor in (("bert.encoder.layer.9.attention.self.query.weight.lora_a", torch.zeros(4, 48)),):
        save_file({**stored, name: tensor}, path)
        refused(lambda: ReasoningEmbedder(folder, device="cpu"), "layer.9", "no weight for")
    second = next(name for name in stored if name.endswith("lora_b"))
    save_file({name: tensor for name, tensor in stored.items() if name != second}, path)
    refused(lambda: ReasoningEmbedder(folder, device="cpu"), "second factor")


def test_a_thinker_without_the_token(folder: Path) -> None:
    path = folder / "thinker" / "conversation.json"
    words = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**words, "embed_token": "<|other|>", "direct_answer": "<|other|>"}), encoding="utf-8")
    refused(lambda: ReasoningEmbedder(folder, device="cpu"), "'<|other|>'", str(folder))


@pytest.mark.parametrize("file", ["modules.json", "config.json", "model.safetensors", "1_Pooling/config.json"])
def test_a_damaged_file_of_the_encoder(thinker_checkpoint: Path, copy_of: Copy, file: str) -> None:
    folder = copy_of(thinker_checkpoint)
    whole = (folder / file).read_bytes()
    (folder / file).unlink()
    refused(lambda: ReasoningEmbedder(folder, device="cpu"), str(folder))
    (folder / file).write_bytes(whole[:20])
    refused(lambda: ReasoningEmbedder(folder, device="cpu"), str(folder))


def test_an_exchanged_encoder_is_told(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = tiny_encoders.save_bert(tmp_path / "other", seed=1)
    shutil.copytree(other, folder, dirs_exist_ok=True)
    embedder = ReasoningEmbedder(folder, device="cpu")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(folder) in record.getMessage() and "(mean)" in record.getMessage()
    stock = SentenceTransformer(str(other), device="cpu")
    np.testing.assert_allclose(embedder.encode(["a river"]), stock.encode(["a river"]), atol=1e-5)


def test_an_adapter_on_the_encoder_is_told(
    thinker_checkpoint: Path, encoder: Path, copy_of: Copy, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(thinker_checkpoint)
    model: Any = SentenceTransformer(str(encoder), device="cpu")[0].auto_model
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=64, target_modules=["query"], init_lora_weights=False))
    model.save_pretrained(folder)
    embedder = ReasoningEmbedder(folder, device="cpu")
    assert any("(mean)" in record.getMessage() and str(folder) in record.getMessage() for record in caplog.records)
    stock = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(embedder.encode(["a river"]), stock.encode(["a river"]), atol=1e-5)
    assert np.isfinite(embedder.encode_query(["a river"])).all()


def test_encoders_that_are_none(
    encoder: Path, mini_checkpoint: Path, qwen2_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    empty, plain = tmp_path / "empty", tmp_path / "plain"
    empty.mkdir()
    shutil.copytree(encoder, plain)
    (plain / "modules.json").unlink()
    before = contents(tmp_path)
    for folder in (empty, plain, qwen2_checkpoint, mini_checkpoint):
        refused(lambda folder=folder: ReasoningEmbedder.from_encoder(folder), str(folder), "modules.json")
    refused(lambda: ReasoningEmbedder.from_encoder(tmp_path / "nowhere"), "nowhere")
    refused(lambda: ReasoningEmbedder.from_encoder("owner/nowhere"), "'owner/nowhere'", "not on this machine")
    refused(lambda: ReasoningEmbedder.from_encoder(encoder, "owner/thinker"), "'owner/thinker'", "not on this machine")
    assert contents(tmp_path) == before


def test_an_encoder_with_code_of_its_own(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it may run is the caller's to say: that is passed on, and never said for them."""
    folder = Path(shutil.copytree(encoder, tmp_path / "own-code"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.OwnConfig", "AutoModel": "code.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "code.py").write_text("raise SystemExit('it ran')\n", encoding="utf-8")
    refused(lambda: ReasoningEmbedder.from_encoder(folder, device="cpu"), str(folder), "trust_remote_code")
    seen: list[dict[str, Any]] = []
    plain = new_thinker.SentenceTransformer

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(dict(kwargs))
        return plain(*args, **kwargs)

    monkeypatch.setattr(new_thinker, "SentenceTransformer", noted)
    ReasoningEmbedder.from_encoder(encoder, device="cpu")
    ReasoningEmbedder.from_encoder(encoder, device="cpu", trust_remote_code=True)
    assert "trust_remote_code" not in seen[0] and seen[1]["trust_remote_code"] is True


def test_thinkers_that_are_none(encoder: Path, qwen2_checkpoint: Path, copy_of: Copy, tmp_path: Path) -> None:
    for thinker in (encoder, tmp_path):
        refused(lambda thinker=thinker: ReasoningEmbedder.from_encoder(encoder, thinker, device="cpu"), str(thinker))
    silent = copy_of(qwen2_checkpoint)
    (silent / "chat_template.jinja").unlink()
    refused(lambda: ReasoningEmbedder.from_encoder(encoder, silent, device="cpu"), str(silent), "chat template")
    last = tiny_encoders.save_last_token(tmp_path / "last")
    refused(lambda: ReasoningEmbedder.from_encoder(last, device="cpu"), "'qwen2'", error=ValueError)
    for prompts in ({"answer": "x"}, {"embed_token": ""}, {"max_reasoning_tokens": -1}):
        with pytest.raises((ValueError, TypeError)):
            ReasoningEmbedder.from_encoder(encoder, qwen2_checkpoint, prompts=prompts, device="cpu")
    with pytest.raises(ValueError, match="prompts are for a language model"):
        ReasoningEmbedder.from_encoder(encoder, prompts={"max_reasoning_tokens": 3}, device="cpu")


def test_arguments_that_are_not_for_this_kind(thinker_checkpoint: Path, encoder: Path) -> None:
    prompts = {"direct": "a", "reasoning": "b"}
    with pytest.raises(ValueError, match="system_prompts are for single models"):
        ReasoningEmbedder(thinker_checkpoint, system_prompts=prompts, device="cpu")
    embedder = ReasoningEmbedder(thinker_checkpoint, device="cpu")
    with pytest.raises(ValueError, match=r"encode_document with reason=True or reasoning is not for"):
        embedder.encode_document(["a river"], reason=True)
    with pytest.raises(ValueError, match="on_truncate must be one of .* got 'shout'"):
        ReasoningEmbedder.from_encoder(encoder, on_truncate="shout", device="cpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_truncate must be one of .* got 'shout'"):
        embedder.on_truncate = "shout"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="max_reasoning_tokens.* got -1"):
        ReasoningEmbedder.from_encoder(encoder, max_reasoning_tokens=-1, device="cpu")


def test_a_thinker_gets_the_token_that_it_lacks(encoder: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny.qwen2()
    vocabulary = len(tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    embedder = ReasoningEmbedder.from_encoder(
        encoder, tmp_path / "model", prompts={"embed_token": "<|end|>", "direct_answer": "<|end|>"}, device="cpu"
    )
    assert embedder.conversation.embed_token_id == vocabulary
    assert len(embedder.causal_lm.get_input_embeddings().weight) == vocabulary + 1
    expected = tiny_encoders.teach(embedder).encode_query(["a river"])
    embedder.save_pretrained(str(tmp_path / "saved"))
    again = ReasoningEmbedder(tmp_path / "saved", device="cpu")
    np.testing.assert_array_equal(again.encode_query(["a river"]), expected)
    assert again.conversation.embed_token == "<|end|>"


def test_what_stops_a_saving_leaves_the_old_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = ReasoningEmbedder(folder, device="cpu")
    before = contents(folder)

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("searchr3_embed.checkpoint.thinker.write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        tiny_encoders.teach(embedder, seed=9).save_pretrained(str(folder))
    assert contents(folder) == before
