"""``searchr3 save``."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder
from tests.cli.command import Command


def test_save_makes_what_stock_sentence_transformers_loads(
    command: Command, embedder: ReasoningEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command("save", command.model, "./searchr3")
    assert (code, out) == (0, "") and err.count("\n") == 1

    texts = ["why is the sky blue", "the river"]
    stock = SentenceTransformer("searchr3", device="cpu")
    np.testing.assert_allclose(stock.encode(texts), embedder.encode(texts), atol=1e-5)
    assert not list((tmp_path / "searchr3").glob(".*")), "no temporary folder stays"
    if os.name == "posix":  # safetensors would let only the owner read the weights
        assert len({path.stat().st_mode for path in (tmp_path / "searchr3").iterdir() if path.is_file()}) == 1

    assert "is not empty" in command.fails("save", command.model, "searchr3")
    assert command("save", command.model, "searchr3", "--force").code == 0
    assert ReasoningEmbedder("./searchr3", device="cpu").reason("why?").text == "why?"


def test_save_on_a_full_disk_is_one_line_and_leaves_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: SentenceTransformer, folder: str, *args: Any, **kwargs: Any) -> None:
        Path(folder, "half").write_text("half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(SentenceTransformer, "save", full)
    message = command.fails("save", command.model, tmp_path / "new")
    assert f"{tmp_path / 'new'}: the model can't be written" in message and "No space left" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_that_may_not_be_written_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, number: int
) -> None:
    make = os.mkdir

    def refused(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).is_relative_to(tmp_path):  # root may write everywhere
            raise OSError(number, os.strerror(number), path)
        make(path, *args, **kwargs)

    target = tmp_path / "model"
    if exists:
        target.mkdir()
    monkeypatch.setattr(os, "mkdir", refused)
    message = command.fails("save", command.model, target)
    assert str(target) in message and os.strerror(number) in message and "unfinished" not in message
    assert list(tmp_path.iterdir()) == ([target] if exists else [])


@pytest.mark.parametrize("place", ["new", "."])
def test_save_removes_what_a_killed_one_left(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    left = tmp_path / place / (".0123456789ab.unfinished" if place == "new" else ".new.0123456789ab.unfinished")
    left.mkdir(parents=True)
    (left / "model.safetensors").touch()
    assert command("save", command.model, tmp_path / "new").code == 0
    assert not left.exists() and [path.name for path in tmp_path.iterdir()] == ["new"]
