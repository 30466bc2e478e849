"""What SECURITY.md promises of checkpoints that a stranger wrote; texts are in test_conversation.py."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

import searchr3_embed
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


def pickled(folder: Path, bomb: bool) -> Path:
    """Puts the weights of a folder into a pickle."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Bomb(folder)} if bomb else weights, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


@pytest.mark.parametrize("kind", ["released_checkpoint", "thinker_checkpoint", "language_model_thinker_checkpoint"])
def test_pickled_weights_are_refused_and_run_nothing(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = shutil.copytree(request.getfixturevalue(kind), tmp_path / "pickled")
    file = pickled(folder / "thinker" if kind.startswith("language") else folder, bomb=True)
    with pytest.raises(CheckpointError, match="safetensors only") as raised:
        ReasoningEmbedder(str(folder), device="cpu")
    assert str(file) in str(raised.value) and not list(tmp_path.rglob("was-run"))


def test_a_pickle_is_converted_as_its_refusal_says(encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder, tmp_path / "pickled")
    file = pickled(folder, bomb=False)
    with pytest.raises(CheckpointError, match="safetensors only") as raised:
        ReasoningEmbedder.from_encoder(str(folder), device="cpu")
    code = str(raised.value).partition('python -c "')[2].removesuffix('"')
    exec(code)  # noqa: S102
    assert file.exists()  # safetensors are read before it
    expected = SentenceTransformer(str(encoder), device="cpu").encode(["a river"])
    loaded = ReasoningEmbedder.from_encoder(str(folder), device="cpu")
    np.testing.assert_allclose(loaded.encode_query(["a river"]), expected, atol=1e-5)


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


PACKAGE = Path(searchr3_embed.__file__).parent
DATA_SUFFIXES = {".safetensors", ".json", ".jinja", ".md", ".txt"}


@pytest.mark.parametrize("kind", ["mini_checkpoint", "thinker_checkpoint", "language_model_thinker_checkpoint"])
def test_weights_are_written_as_safetensors_only(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    ReasoningEmbedder(request.getfixturevalue(kind), device="cpu").save_pretrained(str(tmp_path / "saved"))
    written = {path.suffix for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert ".safetensors" in written and written <= DATA_SUFFIXES


def test_what_is_shipped_is_data() -> None:
    shipped = {path.suffix for path in (PACKAGE / "weights").rglob("*") if path.is_file()}
    assert ".safetensors" in shipped and shipped <= DATA_SUFFIXES


def test_nothing_in_the_library_unpickles_or_runs_what_it_reads() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _dangerous(node):
                found.append(f"{path.relative_to(PACKAGE)}: {name}")
    assert found == []


def test_dangerous_lines_would_be_found() -> None:
    lines = [
        "import pickle", "from marshal import loads", "torch.load(path)", "np.load(path)", "eval(text)",
        "np.load(path, allow_pickle=True)", "AutoModel.from_pretrained(path, trust_remote_code=True)",
    ]  # fmt: skip
    assert [line for line in lines if not any(list(_dangerous(node)) for node in ast.walk(ast.parse(line)))] == []
    harmless = [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "f(trust_remote_code=False)",
    ]
    assert [line for line in harmless if any(list(_dangerous(node)) for node in ast.walk(ast.parse(line)))] == []


def _dangerous(node: ast.AST) -> Iterator[str]:
    """What of a line of code could run what a stranger wrote."""
    modules = {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] in modules)
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in modules:
        yield node.module or ""
    if not isinstance(node, ast.Call):
        return
    called = ast.unparse(node.func)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called in ("eval", "exec") or given.get("trust_remote_code") == "True":
        yield called
    if called == "torch.load" and given.get("weights_only") != "True":
        yield called
    if called in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
        yield called
