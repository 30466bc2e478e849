"""What the tests of checkpoints share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Copy = Callable[[Path], Path]


@pytest.fixture
def copy_of(tmp_path: Path) -> Copy:
    """Copies a checkpoint's folder, so that a test may damage it."""

    def make(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return make
