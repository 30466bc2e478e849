"""A name becomes a folder, or an error that says what is accepted; the network is never waited for."""

from __future__ import annotations

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
