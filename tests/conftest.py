"""Shared settings and small random checkpoints. Everything runs offline and on one thread."""

from __future__ import annotations

import os

# Before torch is imported anywhere: two threads on a tiny model only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def mini_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random checkpoint of the packaged model's kind: BERT made causal, absolute positions."""
    return tiny.save_mini(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="session")
def qwen2_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random checkpoint with rotary positions, saved by this package."""
    return tiny.save_qwen2(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="session")
def released_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in the layout of the released Search-R3 checkpoints: plain causal LM, prompts in example.py."""
    return tiny.save_released(tmp_path_factory.mktemp("released"))
