"""Which encoder made these vectors: probes, and a few rows of someone's index embedded again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder, encoder_identity
from tests import tiny_encoders

TEXTS = [f"{number} {text}" for number in range(8) for text in ("a river of ice", "the heart pumps blood", "0 1 2")]


@pytest.fixture(scope="module")
def embedder(thinker_checkpoint: Path) -> ReasoningEmbedder:
    return ReasoningEmbedder(thinker_checkpoint, device="cpu", on_truncate="ignore")


@pytest.fixture(scope="module")
def index(encoder: Path) -> np.ndarray:
    """What the stock class wrote years ago."""
    return SentenceTransformer(str(encoder), device="cpu").encode(TEXTS)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_an_index_of_the_encoder_is_valid(embedder: ReasoningEmbedder, index: np.ndarray, dtype: type) -> None:
    found = embedder.check_index(TEXTS, index.astype(dtype))
    assert found and found.valid and found.rows == 16 and found.lowest_cosine > 0.9999
    assert found.message.startswith(f"The index is valid for {embedder.encoder_name}: 16 rows agree")
    assert embedder.check_index(TEXTS, index.tolist(), rows=3).rows == 3
    assert embedder.check_index(TEXTS[:2], index[:2]).rows == 2
    assert embedder.check_index(TEXTS, index, rows=10**6).rows == len(TEXTS)


def swapped(index: np.ndarray) -> np.ndarray:
    return index[::-1]


def longer(index: np.ndarray) -> np.ndarray:
    return index * 2


def with_a_nan(index: np.ndarray) -> np.ndarray:
    changed = index.copy()
    changed[0, 3] = np.nan
    return changed


def infinite(index: np.ndarray) -> np.ndarray:
    changed = index.copy()
    changed[0, 3] = np.inf
    return changed


def zero(index: np.ndarray) -> np.ndarray:
    return np.zeros_like(index)


@pytest.mark.parametrize("change", [swapped, longer, with_a_nan, infinite, zero])
def test_an_index_of_something_else_is_not(
    embedder: ReasoningEmbedder, index: np.ndarray, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    found = embedder.check_index(TEXTS, change(index))
    assert not found and not found.valid
    assert found.message.startswith(f"The index was not made by {embedder.encoder_name} from these texts")
    assert f"row {found.worst} most" in found.message
    if change in (with_a_nan, infinite, zero):
        assert found.worst == 0 and found.lowest_cosine == 0


def test_an_index_of_another_encoder_is_not(embedder: ReasoningEmbedder, tmp_path: Path) -> None:
    other = SentenceTransformer(str(tiny_encoders.save_bert(tmp_path / "other", seed=1)), device="cpu")
    assert not embedder.check_index(TEXTS, other.encode(TEXTS))
    smaller = embedder.check_index(TEXTS, other.encode(TEXTS, truncate_dim=8))
    assert not smaller and smaller.message == f"The index has 8 dimensions, {embedder.encoder_name} has 48."


def test_there_must_be_something_to_compare(embedder: ReasoningEmbedder, index: np.ndarray) -> None:
    for texts, vectors in (([], []), ([], index[:0]), (TEXTS, index[:-1]), (TEXTS[:1], index[0])):
        with pytest.raises(ValueError, match=f"got {len(texts)} texts and vectors of shape"):
            embedder.check_index(texts, vectors)
    with pytest.raises(ValueError, match="rows must be a positive integer, got 0"):
        embedder.check_index(TEXTS, index, rows=0)
    with pytest.raises(TypeError, match="Item 0 is 7"):
        embedder.check_index([7], index[:1])  # type: ignore[list-item]


def test_a_single_model_checks_an_index_too(mini_checkpoint: Path) -> None:
    single = ReasoningEmbedder(mini_checkpoint, device="cpu")
    vectors = single.encode_document(TEXTS)
    assert single.check_index(TEXTS, vectors).message.startswith("The index is valid for this model")
    assert not single.check_index(TEXTS, vectors[::-1])


def test_probes(embedder: ReasoningEmbedder, encoder: Path, tmp_path: Path) -> None:
    stock = SentenceTransformer(str(encoder), device="cpu")
    ours = embedder.probe()
    np.testing.assert_allclose(ours, encoder_identity.probe_vectors(stock.encode), atol=1e-5)
    assert ours.shape == (len(encoder_identity.PROBES), 48) and ours.dtype == np.float32
    assert encoder_identity.same_space(ours, ours.astype(np.float16).tolist())
    other = SentenceTransformer(str(tiny_encoders.save_bert(tmp_path / "other", seed=1)), device="cpu")
    assert not encoder_identity.same_space(ours, other.encode(list(encoder_identity.PROBES)))
    assert not encoder_identity.same_space(ours, ours[:, :8]) and not encoder_identity.same_space(ours, ours[:2])
    assert not encoder_identity.same_space(ours, ours * 1.1) and not encoder_identity.same_space(ours, ours * np.nan)
