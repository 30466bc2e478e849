"""The cache of document vectors: reuse, repair, and never a wrong vector."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.search import vector_cache
from searchr3_embed.search.vector_cache import cached_vectors, default_cache_folder, document_fingerprint


class Encoder:
    """Stands for a model: a vector that depends on the text alone, and a record of what it was asked."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.texts += texts
        return self.expected(texts)

    @staticmethod
    def expected(texts: list[str]) -> np.ndarray:
        seeds = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        rows = [np.frombuffer(seed, dtype=np.uint8)[:8].astype(np.float32) for seed in seeds]
        return np.stack([row / np.linalg.norm(row) for row in rows])


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


# Of the encoder that the tests stand for.
PROBES = np.eye(4, 8, dtype=np.float32)
TEXTS = ["alpha", "beta is longer", "gamma", "delta"]


def run(folder: Path, encoder: Encoder, texts: list[str], **changed: object) -> vector_cache.CachedVectors:
    options = {"source": "docs", "fingerprint": "model 1", "probes": PROBES, **changed}
    result = cached_vectors(texts, encoder, folder=folder, **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(result.vectors, Encoder.expected(texts))
    assert result.vectors.dtype == np.float32
    return result


def test_unchanged_input_is_not_encoded_again(tmp_path: Path, encoder: Encoder) -> None:
    first = run(tmp_path, encoder, TEXTS)
    second = run(tmp_path, encoder, TEXTS)

    assert (first.reused, first.encoded) == (0, 4)
    assert (second.reused, second.encoded) == (4, 0)
    assert sorted(encoder.texts) == sorted(TEXTS)
    assert list(tmp_path.iterdir()) == [second.path], "no temporary file stays"


def test_only_what_changed_is_encoded(tmp_path: Path, encoder: Encoder) -> None:
    run(tmp_path, encoder, TEXTS)
    encoder.texts.clear()

    result = run(tmp_path, encoder, ["delta", "new", "alpha", "gamma"])

    assert encoder.texts == ["new"]
    assert (result.reused, result.encoded) == (3, 1)


def test_texts_that_are_gone_leave_the_file(tmp_path: Path, encoder: Encoder) -> None:
    before = run(tmp_path, encoder, [f"text {number}" for number in range(200)]).path
    assert before is not None
    large = before.stat().st_size
    result = run(tmp_path, encoder, ["text 7"])

    assert result.encoded == 0 and result.path is not None
    assert result.path.stat().st_size < large / 4


def test_a_repeated_text_is_encoded_once(tmp_path: Path, encoder: Encoder) -> None:
    progress: list[int] = []
    result = run(tmp_path, encoder, ["same", "other", "same", "same"], progress=progress.append)

    assert sorted(encoder.texts) == ["other", "same"]
    assert result.encoded == 2
    assert sum(progress) == 4


@pytest.mark.parametrize(
    "changed", [{"source": "other docs"}, {"fingerprint": "model 2"}, {"settings": {"dimension": 8}}]
)
def test_another_source_model_or_setting_shares_nothing(
    tmp_path: Path, encoder: Encoder, changed: dict[str, object]
) -> None:
    before = run(tmp_path, encoder, TEXTS)
    result = run(tmp_path, encoder, TEXTS, **changed)

    assert (result.reused, result.encoded) == (0, 4)
    assert result.path != before.path
    assert run(tmp_path, encoder, TEXTS).encoded == 0, "the first file is untouched"


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_one_bit(path: Path) -> None:
    with np.load(path) as arrays:
        vector = arrays["vectors"][0].tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(vector) + 3] ^= 1
    path.write_bytes(data)


def _wrong_arrays(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, something=np.zeros(3))


def _shape_that_lies(path: Path) -> None:
    with np.load(path) as arrays:
        stored = dict(arrays)
    stored["vectors"] = stored["vectors"][:-1]
    with open(path, "wb") as file:
        np.savez(file, **stored)


def _not_a_number(path: Path) -> None:
    with np.load(path) as arrays:
        stored = dict(arrays)
    stored["vectors"][0, 0] = np.nan
    with open(path, "wb") as file:
        np.savez(file, **stored)


def _pickle(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, keys=np.array([{"a": 1}], dtype=object), vectors=np.zeros((1, 8)), identity=np.array("x"))


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip_one_bit,
        _wrong_arrays,
        _shape_that_lies,
        _not_a_number,
        _pickle,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a zip file"),
    ],
)
def test_a_damaged_file_is_made_again(
    tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    path = run(tmp_path, encoder, TEXTS).path
    damage(path)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        repaired = run(tmp_path, encoder, TEXTS)

    assert repaired.encoded == 4
    assert len(caplog.records) == 1 and "made again" in caplog.text
    assert run(tmp_path, encoder, TEXTS).encoded == 0


def test_what_was_done_before_an_interruption_is_kept(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_cache, "_CHUNK", 2)

    def interrupted(texts: list[str]) -> np.ndarray:
        if encoder.texts:
            raise KeyboardInterrupt
        return encoder(texts)

    with pytest.raises(KeyboardInterrupt):
        cached_vectors(TEXTS, interrupted, folder=tmp_path, source="docs", fingerprint="model 1", probes=PROBES)

    result = run(tmp_path, encoder, TEXTS)
    assert (result.reused, result.encoded) == (2, 2)
    assert sorted(encoder.texts) == sorted(TEXTS), "nothing twice"


def test_a_folder_that_cannot_be_written_costs_a_warning_only(
    tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "a file" / "cache", encoder, TEXTS)

    assert "cannot be kept" in caplog.text


def test_an_encoder_that_loses_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one vector a text"):
        cached_vectors(
            TEXTS, lambda texts: np.zeros((1, 4)), folder=tmp_path, source="docs", fingerprint="m", probes=PROBES
        )
    assert not list(tmp_path.glob("*.tmp"))


def test_no_texts(tmp_path: Path, encoder: Encoder) -> None:
    result = cached_vectors([], encoder, folder=tmp_path, source="docs", fingerprint="m", probes=PROBES)
    assert len(result.vectors) == 0 and not encoder.texts


def test_unusual_texts_and_source_names(tmp_path: Path, encoder: Encoder) -> None:
    texts = ["", "\ud800 lone surrogate", "日本語", "a" * 100_000]
    source = "/weird: \\ name?*\u202e"
    assert run(tmp_path, encoder, texts, source=source).encoded == 4
    assert run(tmp_path, encoder, texts, source=source).encoded == 0


def test_the_fingerprint_tells_models_apart(mini_checkpoint: Path, qwen2_checkpoint: Path) -> None:
    embedder = ReasoningEmbedder(mini_checkpoint, device="cpu")
    first = document_fingerprint(embedder)
    assert first == document_fingerprint(ReasoningEmbedder(mini_checkpoint, device="cpu")), "the same in every process"
    assert first != document_fingerprint(ReasoningEmbedder(qwen2_checkpoint, device="cpu"))

    embedder.max_seq_length = embedder.max_seq_length - 1
    shorter = document_fingerprint(embedder)
    assert shorter != first
    with torch.no_grad():
        next(embedder.causal_lm.parameters()).add_(0.01)
    assert document_fingerprint(embedder) != shorter


def test_another_encoder_of_the_same_name_is_told_and_shares_nothing(
    tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, encoder, TEXTS)
    assert run(tmp_path, encoder, TEXTS, probes=PROBES.astype(np.float16) * 1.001).encoded == 0, (
        "a copy of less precision"
    )
    assert not caplog.records

    other = run(tmp_path, encoder, TEXTS, probes=PROBES[::-1])
    assert (other.reused, other.encoded) == (0, 4)
    assert len(caplog.records) == 1 and "another encoder of the same name" in caplog.text
    assert run(tmp_path, encoder, TEXTS, probes=PROBES[::-1]).encoded == 0


def test_vectors_of_the_first_release_are_named_once(
    tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    for source in ("docs", "docs "):  # both are called docs-... in the folder
        identity = json.dumps([1, "weights of 0.1.0", source, {}])
        former = vector_cache._cache_path(tmp_path, source, identity)
        np.savez(former, keys=np.zeros((1, 16), np.uint8), vectors=np.ones((1, 8), np.float32), identity=identity)

    assert run(tmp_path, encoder, TEXTS).encoded == 4
    former = vector_cache._cache_path(tmp_path, "docs", json.dumps([1, "weights of 0.1.0", "docs", {}]))
    assert [record.args for record in caplog.records] == [(former,)] and "of another space" in caplog.text
    assert run(tmp_path, encoder, TEXTS).encoded == 0
    assert len(caplog.records) == 1


def test_documents_belong_to_the_encoder_not_to_its_thinker(joined_checkpoint: Path, mini_checkpoint: Path) -> None:
    embedder = ReasoningEmbedder(joined_checkpoint, device="cpu")
    first = document_fingerprint(embedder)
    embedder.encode_document(["a text that is padded", "and another"], batch_size=1)
    assert embedder.question_side is not None
    embedder.question_side.projection += 1
    assert document_fingerprint(embedder) == first
    embedder.max_seq_length = embedder.max_seq_length - 1
    assert document_fingerprint(embedder) != first
    assert document_fingerprint(ReasoningEmbedder(mini_checkpoint, device="cpu")) != first


def test_what_a_kill_interrupts_is_kept_too(tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_cache, "_CHUNK", 1)
    monkeypatch.setattr(vector_cache, "_FIRST_SAVE", 0)
    monkeypatch.setattr(vector_cache, "_SAVE_EVERY", 0)
    stored: list[int] = []

    def watched(texts: list[str]) -> np.ndarray:
        for path in tmp_path.glob("*.npz"):
            with np.load(path) as arrays:
                stored.append(len(arrays["vectors"]))
        time.sleep(0.05)
        return encoder(texts)

    cached_vectors(TEXTS, watched, folder=tmp_path, source="docs", fingerprint="model 1", probes=PROBES)
    assert stored and stored == sorted(stored)
    assert run(tmp_path, encoder, TEXTS).encoded == 0


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_only_the_owner_reads_what_is_kept(tmp_path: Path, encoder: Encoder) -> None:
    before = os.umask(0)
    try:
        path = run(tmp_path / "cache", encoder, TEXTS).path
    finally:
        os.umask(before)
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_without_a_folder_nothing_is_kept(encoder: Encoder) -> None:
    result = cached_vectors(TEXTS, encoder, folder=None, source="docs", fingerprint="model 1", probes=PROBES)
    np.testing.assert_array_equal(result.vectors, Encoder.expected(TEXTS))
    assert result.path is None and result.encoded == 4


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = default_cache_folder()
    assert folder is not None and folder.is_absolute() and "searchr3" in folder.parts

    def homeless(*_: object, **__: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(vector_cache.platformdirs, "user_cache_path", homeless)
    assert default_cache_folder() is None
    monkeypatch.setattr(vector_cache.platformdirs, "user_cache_path", lambda *_, **__: Path("~/.cache/searchr3"))
    assert default_cache_folder() is None
