"""The installed package as a whole: what importing it costs, what it exports, what it calls itself."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import searchr3_embed

ROOT = Path(__file__).parent.parent
HEAVY = (
    *("torch", "transformers", "sentence_transformers", "tokenizers", "faiss", "numpy"),
    *("trl", "peft", "datasets", "fastapi", "ray"),
)


def run_python(*arguments: str) -> str:
    finished = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_import_is_quick_and_does_not_load_torch():
    code = f"""
import json, sys, time
start = time.perf_counter()
import searchr3_embed
seconds = time.perf_counter() - start
dir(searchr3_embed), searchr3_embed.__version__
print(json.dumps([seconds, sorted(sys.modules.keys() & set({HEAVY!r}))]))
"""
    runs = [json.loads(run_python("-c", code)) for _ in range(3)]
    assert [loaded for _, loaded in runs] == [[], [], []]
    assert min(seconds for seconds, _ in runs) < 1.0


def test_dir_lists_the_exports_before_they_are_loaded():
    names = run_python("-c", "import searchr3_embed; print(*dir(searchr3_embed))").split()
    assert {"Reasoning", "ReasoningEmbedder", "__version__"} <= set(names)
    assert set(searchr3_embed.__all__) == {"Reasoning", "ReasoningEmbedder", "__version__"}


def test_exports_are_the_classes_of_their_modules():
    from searchr3_embed import Reasoning, ReasoningEmbedder, embedder, reasoning_trace

    assert ReasoningEmbedder is embedder.ReasoningEmbedder
    assert Reasoning is reasoning_trace.Reasoning


def test_unknown_attribute_raises():
    with pytest.raises(AttributeError, match="module 'searchr3_embed' has no attribute 'Embedder'"):
        searchr3_embed.Embedder  # noqa: B018
    with pytest.raises(ImportError, match="Embedder"):
        from searchr3_embed import Embedder  # noqa: F401


def test_version_is_the_one_in_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert searchr3_embed.__version__ == importlib.metadata.version(project["name"]) == project["version"]


def test_package_is_typed():
    assert (Path(searchr3_embed.__file__).parent / "py.typed").is_file()


def test_module_runs_the_command():
    assert "searchr3" in run_python("-m", "searchr3_embed", "--help")
