"""``searchr3 env``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from searchr3_embed.checkpoint import locate
from searchr3_embed.cli import bug_report
from searchr3_embed.cli import main as cli
from tests.cli.command import Command


def test_env_reports_what_a_bug_report_needs(command: Command) -> None:
    code, out, err = command("env", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["system"]["python"] and report["system"]["cpus"] == os.cpu_count()
    assert report["versions"]["torch"] and report["versions"]["sentence-transformers"]
    assert report["torch"]["threads"] >= 1
    assert "searchr3-mini" in report["packaged checkpoint"]["folder"]
    assert report["cache"] == {"folder": str(command.cache), "files": 0, "bytes": 0}
    assert "sentence-transformers: " in command("env").out


def test_env_names_encoder_and_thinker(
    command: Command, joined_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "packaged_folder", lambda: joined_checkpoint)
    report = json.loads(command("env", "--json").out)["packaged checkpoint"]
    assert (report["encoder"], report["thinker"], report["dtype"]) == (
        "encoder",
        "the encoder's own layers",
        "float32",
    )
    assert {"sha256 of model.safetensors", "sha256 of thinker/projection.safetensors"} <= set(report)


def test_env_survives_a_broken_installation(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, _ = command("env", "--json")
    assert code == 0
    assert "ModuleNotFoundError" in json.loads(out)["torch"]["error"]


def test_env_survives_having_no_home(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bug_report, "default_cache_folder", lambda: None)
    assert cli.main(["env", "--json"]) == 0
    assert "no home folder" in json.loads(capsys.readouterr().out)["cache"]["error"]
