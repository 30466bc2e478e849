"""Every snippet and command of the README runs."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from searchr3_embed.adapt import grid
from searchr3_embed.cli import main as cli
from searchr3_embed.search import python_docs
from tests.adapt import small_corpus
from training.evaluate.models import teacher_source

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Needs a server that listens there; tests/server/test_readme.py has one.
SERVED = "http://127.0.0.1:8080"
SHOWN = re.compile(r"^print\(.*\)\n((?:# .*\n?)+)", re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [body for name, body in BLOCK.findall(README) if name == language]


def commands() -> list[str]:
    lines = [line for body in blocks("bash") for line in body.replace("\\\n", " ").splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def test_readme_has_what_the_tests_below_look_for() -> None:
    assert len(blocks("python")) >= 3 and len(commands()) >= 8
    assert {"make demo", "make test"} <= set(commands())


def test_python_snippets_run_and_print_what_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Snippets run in order, in one namespace, in an empty folder where `searchr3 save` has made ./searchr3."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["save", "searchr3", "./searchr3"]) == 0
    namespace: dict[str, object] = {}
    for body in (body for body in blocks("python") if SERVED not in body):
        capsys.readouterr()
        exec(compile(body.replace(MINILM, teacher_source()), "README.md", "exec"), namespace)
        shown = [line[2:] for lines in SHOWN.findall(body) for line in lines.splitlines()]
        assert capsys.readouterr().out.splitlines() == shown


@pytest.mark.parametrize("readme", sorted(ROOT.glob("integrations/*/README.md")), ids=lambda path: path.parent.name)
def test_snippets_of_the_integrations(readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = [body for name, body in BLOCK.findall(readme.read_text(encoding="utf-8")) if name == "python"]
    assert snippets
    names: dict[str, object] = {}  # a reader goes on with what stands above
    for body in snippets:
        exec(compile(body, str(readme), "exec"), names)
        shown = [line[2:] for lines in SHOWN.findall(body) for line in lines.splitlines()]
        assert capsys.readouterr().out.splitlines() == shown


@pytest.mark.parametrize(
    "command", [c for c in commands() if c.startswith("searchr3 ") and not c.startswith("searchr3 serve")]
)
def test_cli_commands_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "rivers.md").write_text("# Rivers\n\nThe Seine flows through Paris into the Channel.\n")
    (tmp_path / "notes.txt").write_text("The Seine flows through Paris.\n")
    if "--for notes.npy" in command:
        np.save(tmp_path / "notes.npy", np.ones((1, 384), dtype=np.float32))
    if command.startswith("searchr3 adapt"):  # training takes minutes; tests/cli/test_adapt.py trains small models
        corpus, questions = small_corpus.write(tmp_path, small_corpus.pairs(20))
        corpus.rename(tmp_path / "documents.jsonl")
        questions.rename(tmp_path / "pairs.jsonl")
        monkeypatch.setattr(grid, "search", lambda learner, task, minutes, *_: (grid.Search(""), learner.state()))
    (tmp_path / "questions.txt").write_text("how do rivers end?\nwhat is a delta?\n")
    # All of the standard library takes minutes to embed; its reader is tested elsewhere.
    some = python_docs.read_stdlib()[:40]
    monkeypatch.setattr(python_docs, "read_stdlib", lambda: some)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cli.main(shlex.split(command)[1:]) == 0


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [c for c in commands() if "python -m" in c])
def test_module_commands_take_their_options(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands take hours or need data, so only their options are checked, against the module's own help."""
    words = shlex.split(command)
    module = words[words.index("-m") + 1]
    assert module.split(".")[0] in {"training", "benchmarks"}
    subcommand = ["terms"] if module == "training.prepare.reasoning_targets" else []
    monkeypatch.setattr(sys, "argv", [module, *subcommand, "--help"])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # other tests imported it
        runpy.run_module(module, run_name="__main__")
    assert not stopped.value.code
    help_text = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in help_text, f"{module} has no {option}"


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target
