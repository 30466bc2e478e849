"""The Makefile's promises, without installing anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or os.name == "nt", reason="the Makefile is for machines with make and a POSIX shell"
)


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # A make that runs these tests hands its own flags and variables down; they are not meant for this one.
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "PYTHON"}}
    return subprocess.run(
        ["make", *arguments], capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment, check=False
    )


def test_make_alone_lists_every_target():
    finished = make()
    assert finished.returncode == 0, finished.stderr
    listed = set(re.findall(r"^  make ([a-z-]+) +\S", finished.stdout, flags=re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert phony is not None
    assert listed == set(phony.group(1).split()) == {"help", "demo", "test", "test-all", "lint", "bench", "clean"}


def test_missing_environment_is_made_and_torch_goes_first(tmp_path):
    finished = make("--dry-run", "test", f"VENV={tmp_path / 'venv'}")
    assert finished.returncode == 0, finished.stderr
    steps = ["-m venv", "torch==", 'constraints.txt -e ".[dev,train,eval,serve]"', "-m pytest"]
    positions = [finished.stdout.index(step) for step in steps]
    assert positions == sorted(positions)


def test_demo_does_not_install_the_extras(tmp_path):
    finished = make("--dry-run", "demo", f"VENV={tmp_path / 'venv'}")
    assert finished.returncode == 0, finished.stderr
    assert "constraints.txt -e . " in finished.stdout
    assert "[dev" not in finished.stdout


def test_every_test_runs_once(tmp_path):
    runs = []
    for target in "test", "test-all":
        finished = make("--dry-run", target, f"VENV={tmp_path / 'venv'}", "ARGS=-k engine")
        runs += re.findall(r'-m ("[^"]*"|slow) -k engine', finished.stdout)
    kinds = [{"slow": slow, "timing": timing} for slow in (False, True) for timing in (False, True)]
    for kind in kinds:
        assert sum(bool(eval(marks.strip('"'), {}, kind)) for marks in runs) == 1, (kind, runs)


def test_bench_says_what_data_is():
    finished = make("bench", "DATA=")
    assert finished.returncode != 0
    assert "DATA is missing" in finished.stderr and "BEIR" in finished.stderr
    finished = make("--dry-run", "bench", "DATA=some/eval", "ARGS=--quick")
    assert '-m benchmarks --data "some/eval" --out results --quick' in finished.stdout


def test_old_python_is_refused_in_words(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    finished = make("demo", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert finished.returncode != 0
    assert f"Python 3.11 or newer is needed, and none of these is: {old}." in finished.stderr
    assert not (tmp_path / "venv").exists()
