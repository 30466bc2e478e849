"""A name becomes a folder, or an error that says what is accepted; the network is never waited for."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoint import CheckpointError, locate


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
    assert not locate._hub_answers()
    assert time.perf_counter() - began < 2
    given_up.set()


def test_a_hub_that_never_answers_is_told_and_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commit = "a" * 40
    copy = tmp_path / "models--owner--model" / "snapshots" / commit
    copy.mkdir(parents=True)
    (copy / "config.json").write_text("{}")
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(locate, "_SILENT_SECONDS", 0.2)
    monkeypatch.setattr(locate, "_REPLY_SECONDS", 0.6)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and that is all
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.perf_counter()
        assert locate.find("owner/model", cache_folder=str(tmp_path)) == copy
        with pytest.raises(CheckpointError, match="'owner/other' is not on this machine and the hub can't be reached"):
            locate.find("owner/other", cache_folder=str(tmp_path))
        assert time.perf_counter() - began < 10
    assert caplog.messages[0] == "Waiting for the hub at 127.0.0.1: 'owner/model'."
    assert "does not answer" in caplog.messages[1] and len(caplog.messages) == 4
