"""What people do to a loaded model besides asking it, for both kinds alike: adapters, quantising, dtypes, damage."""

from __future__ import annotations

import asyncio
import copy
import gc
import re
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import nn

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoint import CheckpointError

TEXTS = ["a river of ice", "what is a river?", "the heart pumps blood through arteries", ""]
KINDS = ["mini_checkpoint", "qwen2_checkpoint", "thinker_checkpoint"]


@pytest.fixture(params=KINDS)
def embedder(request: pytest.FixtureRequest) -> Any:
    return load(request.getfixturevalue(request.param))


def load(folder: Path) -> Any:
    return ReasoningEmbedder(folder, device="cpu", on_truncate="ignore")


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def test_adapters_are_merged_into_what_is_saved(embedder: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    names = {name.rpartition(".")[2] for name, _ in embedder[0].named_modules()}
    targets = sorted({"query", "value", "q_proj", "v_proj"} & names)
    before = embedder.encode(TEXTS)
    embedder.add_adapter(peft.LoraConfig(r=4, lora_alpha=64, target_modules=targets, init_lora_weights=False))
    expected, questions = embedder.encode(TEXTS), embedder.encode_query(TEXTS)
    assert abs(expected - before).max() > 1e-2
    embedder.save_pretrained(str(tmp_path / "saved"))
    for cls in (ReasoningEmbedder, SentenceTransformer):
        again = cls(str(tmp_path / "saved"), device="cpu")
        np.testing.assert_allclose(again.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(load(tmp_path / "saved").encode_query(TEXTS), questions, atol=1e-5)
    np.testing.assert_array_equal(embedder.encode(TEXTS), expected)  # the one in memory is as it was


def test_quantize_dynamic_exchanges_layers(embedder: Any) -> None:
    before = embedder.encode_document(TEXTS)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(embedder), {nn.Linear}, dtype=torch.qint8)
    assert sum(type(part).__module__.endswith("dynamic.modules.linear") for part in quantised.modules()) >= 12
    vectors = quantised.encode_document(TEXTS)
    assert 1e-5 < abs(vectors - before).max()
    assert cosines(vectors, before).min() > 0.98
    assert np.isfinite(quantised.encode_query(TEXTS)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_half_the_bytes(dtype: torch.dtype) -> None:
    """The packaged model: a document's vector stays, and so does a question's, even where it thinks otherwise."""
    embedder = load(Path("searchr3"))
    wide = embedder.encode_document(TEXTS), embedder.encode_query(TEXTS)
    assert embedder.to(dtype) is embedder and embedder.dtype == dtype
    half = embedder.encode_document(TEXTS), embedder.encode_query(TEXTS)
    for vectors, expected in zip(half, wide, strict=True):
        assert vectors.dtype == np.float32
        assert cosines(vectors, expected).min() >= (0.99999 if dtype == torch.float16 else 0.9998)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=5e-3)


@pytest.mark.parametrize("number", [np.nan, -np.inf])
@pytest.mark.parametrize(
    ("checkpoint", "file"),
    [
        ("mini_checkpoint", "model.safetensors"),
        ("qwen2_checkpoint", "model.safetensors"),
        ("thinker_checkpoint", "model.safetensors"),
        ("thinker_checkpoint", "thinker/differences.safetensors"),
        ("thinker_checkpoint", "thinker/projection.safetensors"),
    ],
)
def test_weights_that_are_not_finite_are_named(
    checkpoint: str, file: str, number: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = shutil.copytree(request.getfixturevalue(checkpoint), tmp_path / "damaged")
    weights = load_file(folder / file)
    name = sorted(weights)[len(weights) // 2]
    weights[name].view(-1)[-1] = number
    save_file(weights, folder / file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=re.escape(name)) as caught:
        load(folder)
    assert str(folder) in str(caught.value) and "not finite" in str(caught.value)


def test_vectors_that_are_not_finite_are_named(mini_checkpoint: Path, thinker_checkpoint: Path) -> None:
    for embedder in map(load, (mini_checkpoint, thinker_checkpoint)):
        token = embedder.tokenizer.convert_tokens_to_ids("river")
        with torch.no_grad():
            embedder[0].auto_model.get_input_embeddings().weight[token, 3] = np.nan
        with pytest.raises(ValueError, match=r"text 1 \('a river'\) holds numbers that are not finite.*1 of 2 are"):
            embedder.encode(["an ice", "a river"])
        for method in (embedder.encode_query, embedder.reason):
            with pytest.raises(ValueError, match=r"\('a river'\) holds numbers that are not finite"):
                method(["a river"])


def test_a_deleted_model_is_freed(embedder: Any) -> None:
    asyncio.run(embedder.aencode_query(TEXTS))
    embedder = copy.deepcopy(embedder)  # the fixture keeps the other one
    asyncio.run(embedder.aencode_query(TEXTS))
    weights = [weakref.ref(weight) for weight in embedder.causal_lm.parameters()]
    del embedder
    gc.collect()
    assert [weight() for weight in weights] == [None] * len(weights)


def test_event_loops_one_after_another_and_at_once(embedder: Any) -> None:
    expected = embedder.encode_query(TEXTS)

    def loop(_: int) -> np.ndarray:
        return asyncio.run(embedder.aencode_query(TEXTS))

    with ThreadPoolExecutor(4) as pool:
        for vectors in (loop(0), loop(1), *pool.map(loop, range(8))):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
