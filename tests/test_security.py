"""What SECURITY.md promises of checkpoints that a stranger wrote; texts are in test_conversation.py."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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
