"""Shared settings and small random checkpoints. Everything runs offline and on one thread."""

from __future__ import annotations

import os

# Before torch is imported anywhere: two threads on a tiny model only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from pathlib import Path

import pytest
from hypothesis import settings

from tests import joined, tiny, tiny_encoders

settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def mini_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random checkpoint of the packaged model's kind: BERT made causal, absolute positions."""
    return tiny.save_mini(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random sentence-transformers model."""
    return joined.save_encoder(tmp_path_factory.mktemp("tiny-encoder"))


@pytest.fixture(scope="session")
def joined_checkpoint(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of that encoder with a thinker that moves questions."""
    return joined.save_joined(encoder_folder, tmp_path_factory.mktemp("joined"))


@pytest.fixture(scope="session")
def qwen2_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random checkpoint with rotary positions, saved by this package."""
    return tiny.save_qwen2(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="session")
def released_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in the layout of the released Search-R3 checkpoints: plain causal LM, prompts in example.py."""
    return tiny.save_released(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random encoder of the kind of all-MiniLM-L6-v2: BERT, mean pooling, length 1."""
    return tiny_encoders.save_bert(tmp_path_factory.mktemp("encoders") / "mean")


@pytest.fixture(scope="session")
def thinker_checkpoint(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of that encoder with a thinker that shares its layers and moves vectors."""
    return tiny_encoders.save_taught(encoder, None, tmp_path_factory.mktemp("thinker"))


@pytest.fixture(scope="session")
def language_model_thinker_checkpoint(
    encoder: Path, qwen2_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of that encoder with a causal language model as its thinker, of another hidden size."""
    return tiny_encoders.save_taught(encoder, qwen2_checkpoint, tmp_path_factory.mktemp("language-model-thinker"))
