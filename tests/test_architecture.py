"""The house: who may import whom (contracts in pyproject.toml), how long a file may get, and that its map is true."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "src/searchr3_embed": "searchr3_embed",
    "training": "training",
    "benchmarks": "benchmarks",
    "integrations/langchain-searchr3/langchain_searchr3": "langchain_searchr3",
    "integrations/llama-index-embeddings-searchr3/llama_index": "llama_index",
    "integrations/searchr3-haystack/haystack_integrations": "haystack_integrations",
}
CODE = (*PACKAGES, "examples")
LONGEST_MODULE, LONGEST_FUNCTION = 450, 60
# One import for every rule, in a file of the room that must not have it.
WRONG_ARROWS = {
    "src/searchr3_embed/embedder.py": "searchr3_embed.embedder -> training.data",
    "training/evaluate/__init__.py": "training.evaluate -> benchmarks.report",
    "integrations/langchain-searchr3/langchain_searchr3/embeddings.py": "langchain_searchr3.embeddings -> training",
    "src/searchr3_embed/engine/__init__.py": "searchr3_embed.engine -> searchr3_embed.conversation",
    "src/searchr3_embed/checkpoint/__init__.py": "searchr3_embed.checkpoint -> searchr3_embed.search",
    "src/searchr3_embed/kinds/__init__.py": "searchr3_embed.kinds -> searchr3_embed.embedder",
    "src/searchr3_embed/search/__init__.py": "searchr3_embed.search -> searchr3_embed.cli",
    "src/searchr3_embed/server/__init__.py": "searchr3_embed.server -> searchr3_embed.cli.main",
    "src/searchr3_embed/conversation.py": "searchr3_embed.conversation -> searchr3_embed.engine.head",
    "src/searchr3_embed/cli/__init__.py": "searchr3_embed.cli -> trl",
    "training/data/__init__.py": "training.data -> training.shared",
    "training/sft/__init__.py": "training.sft -> training.rl.config",
    "training/prepare/__init__.py": "training.prepare -> training.sft.config",
}


def check_arrows(root: Path) -> subprocess.CompletedProcess[str]:
    """Checks the imports of the checkout at `root` against the contracts of its pyproject.toml."""
    folders = [root, *((root / folder).parent for folder in PACKAGES)]
    paths = os.pathsep.join(map(str, folders))
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8", "COLUMNS": "200"},
    )


def test_imports_point_one_way() -> None:
    finished = check_arrows(ROOT)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_a_wrong_arrow_is_found(tmp_path: Path) -> None:
    for folder in PACKAGES:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, arrow in WRONG_ARROWS.items():
        with (tmp_path / path).open("a", encoding="utf-8") as file:
            file.write(f"import {arrow.split(' -> ')[1]}\n")
    finished = check_arrows(tmp_path)
    assert finished.returncode == 1
    assert [arrow for arrow in WRONG_ARROWS.values() if arrow not in finished.stdout] == [], finished.stdout
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    assert [rule["name"] for rule in contracts if f"{rule['name']} BROKEN" not in finished.stdout] == []


def modules() -> Iterator[Path]:
    for folder in CODE:
        yield from (ROOT / folder).rglob("*.py")


def test_no_module_and_no_function_is_too_long() -> None:
    found = []
    for path in modules():
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        if (lines := text.count("\n")) > LONGEST_MODULE:
            found.append(f"{name} has {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if (lines := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION:
                    found.append(f"{name}: {node.name} has {lines} lines")
    assert found == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_every_path_that_a_page_names_exists(page: str) -> None:
    """Paths are given from the root; where a file's way is followed, from the package."""
    named = re.findall(r"`([\w.-]*/[\w./-]*|[\w-]+\.(?:py|md|toml|txt))`", (ROOT / page).read_text(encoding="utf-8"))
    places = (ROOT, ROOT / "src" / "searchr3_embed")
    missing = {path for path in named if not any((place / path).exists() for place in places)}
    assert missing - {"example.py", "searchr3.json", "thinker/"} == set()  # parts of checkpoints
