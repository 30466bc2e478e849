"""Every file of a checkpoint, damaged in every way: one sentence that names the file, or the same vectors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoint import CheckpointError, damage

TEXTS = ["why is the sky blue?"]
# Nobody reads it to embed, or what it says goes without saying.
NOT_NEEDED = {"README.md", "2_Normalize/config.json", "generation_config.json"}
DAMAGES = ("missing", "empty", "half", "braces", "brackets", "binary", "link to nothing", "folder")
# Those that leave a file without what its reader needs not have.
HARMLESS = {("sentence_bert_config.json", "braces"), ("thinker/chat_template.jinja", "half")}
FILES = (
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "searchr3.json",
    "sentence_bert_config.json",
    "thinker/chat_template.jinja",
    "thinker/conversation.json",
    "thinker/differences.safetensors",
    "thinker/projection.safetensors",
    "thinker/tokenizer.json",
    "thinker/tokenizer_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def damaged(original: Path, file: str, kind: str, target: Path) -> None:
    """A copy of a checkpoint, by links, with one damaged file."""
    shutil.copytree(original, target, copy_function=os.link)
    path = target / file
    data = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link to nothing":
        path.symlink_to("/nowhere/at/all")
    elif kind != "missing":
        broken = {"empty": b"", "half": data[: len(data) // 2], "braces": b"{}", "brackets": b"[]"}
        path.write_bytes(broken.get(kind, bytes(range(256)) * 20))


def check(folder: Path, file: str, expected: np.ndarray, may_load: bool) -> None:
    try:
        embedder = ReasoningEmbedder(folder, device="cpu")
    except CheckpointError as error:
        assert Path(file).name in str(error) and "\n" not in str(error), str(error)
    else:
        assert may_load, "it loaded"
        np.testing.assert_allclose(embedder.encode_query(TEXTS), expected, atol=1e-5)


@pytest.fixture(scope="module")
def expected(thinker_checkpoint: Path) -> np.ndarray:
    return ReasoningEmbedder(thinker_checkpoint, device="cpu").encode_query(TEXTS)


def test_all_files_are_tried(thinker_checkpoint: Path) -> None:
    files = {path.relative_to(thinker_checkpoint).as_posix() for path in thinker_checkpoint.rglob("*")}
    held = {name for name in files if (thinker_checkpoint / name).is_file()}
    assert held - NOT_NEEDED == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named(thinker_checkpoint: Path, expected: np.ndarray, tmp_path: Path, file: str) -> None:
    for kind in DAMAGES:
        damaged(thinker_checkpoint, file, kind, tmp_path / kind)
        check(tmp_path / kind, file, expected, (file, kind) in HARMLESS)


def siblings(file: str) -> Iterator[str]:
    """Files of the same kind, which may be taken for it."""
    return (other for other in FILES if Path(other).suffix == Path(file).suffix and other != file)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_a_file_in_the_place_of_another_is_named(
    thinker_checkpoint: Path, expected: np.ndarray, tmp_path: Path, file: str
) -> None:
    for number, other in enumerate(siblings(file)):
        folder = tmp_path / str(number)
        damaged(thinker_checkpoint, file, "missing", folder)
        shutil.copyfile(thinker_checkpoint / other, folder / file)
        # The two tokenizers differ by two tokens, and their settings by nothing that a short text would show.
        may_load = "tokenizer" in file and Path(other).name == Path(file).name
        check(folder, file, expected, may_load)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["missing", "half", "braces", "brackets", "binary"])
def test_a_damaged_file_of_a_single_model_is_named(
    mini_checkpoint: Path, tmp_path: Path, file: str, kind: str
) -> None:
    damaged(mini_checkpoint, file, kind, tmp_path / "copy")
    with pytest.raises(CheckpointError, match=file):
        ReasoningEmbedder(tmp_path / "copy", device="cpu")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "llama"}'])
def test_settings_of_the_stock_class_that_are_none(mini_checkpoint: Path, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(mini_checkpoint, folder)
    (folder / "config_sentence_transformers.json").write_text(text)
    with pytest.raises(CheckpointError, match="config_sentence_transformers.json"):
        ReasoningEmbedder(folder, device="cpu")


def test_a_foreign_tokenizer_is_refused_before_it_reads_beyond_the_table(
    thinker_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    damaged(thinker_checkpoint, "tokenizer.json", "missing", folder)
    shutil.copyfile(thinker_checkpoint / "thinker" / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(CheckpointError, match="tokenizer.json is not of this model"):
        ReasoningEmbedder(folder, device="cpu")


def test_what_is_whole_has_no_damage(thinker_checkpoint: Path, mini_checkpoint: Path, encoder: Path) -> None:
    for folder in (thinker_checkpoint, mini_checkpoint, encoder):
        assert damage.find(folder) is None
    damage.check_weights("it", encoder, SentenceTransformer(str(encoder), device="cpu")[0].auto_model)
