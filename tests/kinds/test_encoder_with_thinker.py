"""An encoder with a thinker: what must hold whatever the encoder and the thinker are."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from langchain_searchr3 import SearchR3Embeddings
from llama_index.embeddings.searchr3 import SearchR3Embedding
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import DynamicCache

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.engine import decode
from searchr3_embed.kinds import encoder_with_thinker
from searchr3_embed.lazy_embedder import LazyEmbedder
from searchr3_embed.question_side import ENCODER
from tests import tiny_encoders

TEXTS = [
    "how do i read a csv file and sum a column",
    "what is a river?",
    "",
    "مرحبا بالعالم",
    "a river [SEP] and [CLS] <|embed_token|> <|think|> <|im_end|>",
    "🎉 interest rates",
    "symptoms of a cold " * 30,
]
# Which encoder, whether its layers are shared, and how it is computed: by the engine, or by sentence-transformers.
PAIRS = {
    "mean and shared layers": ("mean", True, "mean"),
    "first token, own prompts and shared layers": ("cls", True, "cls"),
    "Dense and shared layers": ("dense", True, "mean"),
    "mean and a language model": ("mean", False, "mean"),
    "last token and a language model": ("last", False, None),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """An encoder alone, with a thinker that has learned nothing, and with one that moves vectors."""

    folder: Path
    pooling: str | None
    stock: SentenceTransformer
    new: ReasoningEmbedder
    taught: ReasoningEmbedder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {
        "mean": tiny_encoders.save_bert(folder / "mean"),
        "cls": tiny_encoders.save_bert(
            folder / "cls", normalise=False, pooling="cls", prompts=tiny_encoders.PROMPTS, max_length=64
        ),
        "dense": tiny_encoders.save_bert(folder / "dense", normalise=False, dimension=20),
        "last": tiny_encoders.save_last_token(folder / "last"),
    }


@pytest.fixture(scope="module", params=sorted(PAIRS))
def pair(request: pytest.FixtureRequest, encoders: dict[str, Path], qwen2_checkpoint: Path) -> Pair:
    name, shared, pooling = PAIRS[request.param]

    def join() -> ReasoningEmbedder:
        return ReasoningEmbedder.from_encoder(
            encoders[name],
            None if shared else qwen2_checkpoint,
            device="cpu",
            on_truncate="ignore",
            max_reasoning_tokens=12,
        )

    stock = SentenceTransformer(str(encoders[name]), device="cpu")
    return Pair(encoders[name], pooling, stock, join(), tiny_encoders.teach(join()))


def close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_before_training_every_vector_is_the_encoders(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = pair.new.encode_query(TEXTS, reason=False)
    np.testing.assert_array_equal([result.embedding for result in pair.new.reason(TEXTS)], direct)
    close(direct, pair.stock.encode_query(TEXTS))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing needs to be written")

    monkeypatch.setattr(decode, "think", refuse)
    np.testing.assert_array_equal(pair.new.encode_query(TEXTS), direct)
    with pytest.raises(AssertionError, match="written"):
        pair.new.reason(TEXTS)


def test_without_thinking_every_vector_is_the_encoders(pair: Pair) -> None:
    """By the engine where it computes this encoder, else by the stock class."""
    assert encoder_with_thinker._fast_pooling(pair.taught) == pair.pooling
    for ours, theirs in (
        (pair.taught.encode(TEXTS), pair.stock.encode(TEXTS)),
        (pair.taught.encode_document(TEXTS), pair.stock.encode_document(TEXTS)),
        (pair.taught.encode_query(TEXTS, reason=False), pair.stock.encode_query(TEXTS)),
        (pair.taught.encode(TEXTS, prompt="passage: "), pair.stock.encode(TEXTS, prompt="passage: ")),
    ):
        close(ours, theirs)
    other = copy.deepcopy(pair.taught)
    other[0].auto_model.register_forward_hook(lambda *_: None)
    assert encoder_with_thinker._fast_pooling(other) is None
    np.testing.assert_array_equal(other.encode(TEXTS), pair.stock.encode(TEXTS))


def test_token_embeddings_are_the_encoders(pair: Pair) -> None:
    for ours, theirs in zip(
        pair.taught.encode(TEXTS, output_value="token_embeddings"),
        pair.stock.encode(TEXTS, output_value="token_embeddings"),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def state_by_plain_forward(embedder: ReasoningEmbedder, text: str, written: list[int]) -> Tensor:
    """The state at the embed token, by transformers' own passes: what is written is read, token by token, at once."""
    side = embedder.question_side
    assert side is not None
    model: Any = side.model
    (prompt,) = side.conversation.reasoning_ids([text])
    behind = [*written, side.conversation.embed_token_id]
    with torch.no_grad():
        if side.base != ENCODER:
            return model.base_model(torch.tensor([[*prompt, *behind]])).last_hidden_state[0, -1]
        encoder: Any = embedder[0].auto_model
        kept: list[Tensor] = []
        heads = [getattr(layer.attention.self, kind) for layer in encoder.encoder.layer for kind in ("key", "value")]
        hooks = [module.register_forward_hook(lambda _, __, output: kept.append(output)) for module in heads]
        encoder(torch.tensor([prompt[:-1]]))
        for hook in hooks:
            hook.remove()
        cache = DynamicCache()
        size = encoder.config.hidden_size // encoder.config.num_attention_heads
        for number in range(len(encoder.encoder.layer)):
            keys, values = (tensor.unflatten(2, (-1, size)).transpose(1, 2) for tensor in kept[2 * number :][:2])
            cache.update(keys, values, number)
        ids = torch.tensor([[prompt[-1], *behind]])
        begin, count = len(prompt) - 1, ids.shape[1]
        hidden = torch.ones(count, begin + count).triu(begin + 1) * torch.finfo(torch.float32).min
        positions = torch.arange(begin, begin + count)[None]
        states = model.bert(
            ids, attention_mask=hidden[None, None], position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
    return states[0, -1]


@pytest.mark.parametrize("budget", [0, 12])
def test_anyone_can_repeat_a_questions_vector(pair: Pair, budget: int) -> None:
    """The encoder's vector by the stock class, the thinker's state by transformers, and their sum."""
    side = pair.taught.question_side
    assert side is not None
    results = pair.taught.reason(TEXTS, max_reasoning_tokens=budget)
    np.testing.assert_array_equal(
        [result.embedding for result in results], pair.taught.encode_query(TEXTS, max_reasoning_tokens=budget)
    )
    seen: Counter[str] = Counter()
    for result, base in zip(results, pair.stock.encode_query(TEXTS), strict=True):
        seen[result.finish_reason] += 1
        assert result.reasoning_tokens == len(result.reasoning_ids) <= budget
        if result.finish_reason == "nothing_to_add":
            assert result.reasoning_tokens == 0 and result.reasoning == ""
            close(result.embedding, base)
            continue
        state = state_by_plain_forward(pair.taught, result.text, result.reasoning_ids)
        moved = torch.tensor(base) + side.projection @ F.normalize(state, dim=0)
        if isinstance(pair.stock[-1], nn.Module) and type(pair.stock[-1]).__name__ == "Normalize":
            moved = F.normalize(moved, dim=0)
        np.testing.assert_allclose(result.embedding, moved, rtol=1e-4, atol=2e-5)
        assert np.abs(result.embedding - base).max() > 0.01
    if budget:
        assert seen["embed_token"]
    if budget and side.base == ENCODER:
        assert seen["nothing_to_add"]


def test_batch_and_order_do_not_matter(pair: Pair) -> None:
    whole = pair.taught.encode_query(TEXTS)
    np.testing.assert_allclose(pair.taught.encode_query(TEXTS, batch_size=2), whole, atol=1e-5, rtol=1e-5)
    order = [4, 0, 6, 2, 1, 5, 3]
    close(pair.taught.encode_query([TEXTS[i] for i in order], batch_size=3), whole[order])
    close(np.stack([pair.taught.encode_query(text) for text in TEXTS]), whole)


def test_saved_is_loaded_and_the_stock_class_sees_the_encoder(
    pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "saved"
    pair.taught.save_pretrained(str(folder))
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stock = SentenceTransformer(str(folder), device="cpu")
        again = ReasoningEmbedder(folder, device="cpu", on_truncate="ignore", max_reasoning_tokens=12)
    shown = capfd.readouterr().err.lower()
    assert "report" not in shown and "warn" not in shown and caplog.records == []
    assert type(stock) is SentenceTransformer
    np.testing.assert_array_equal(stock.encode_query(TEXTS), pair.stock.encode_query(TEXTS))
    np.testing.assert_array_equal(stock.encode_document(TEXTS), pair.stock.encode_document(TEXTS))
    np.testing.assert_array_equal(again.encode_query(TEXTS), pair.taught.encode_query(TEXTS))
    np.testing.assert_array_equal(again.encode_document(TEXTS), pair.taught.encode_document(TEXTS))
    assert again.conversation.prompts == pair.taught.conversation.prompts
    assert again.max_seq_length == pair.taught.max_seq_length == pair.stock.max_seq_length
    assert again.encoder_name == pair.taught.encoder_name == pair.folder.name
    assert json.loads((folder / "modules.json").read_text()) == json.loads((pair.folder / "modules.json").read_text())
    second = tmp_path / "second"
    again.save_pretrained(str(second))
    third = ReasoningEmbedder(second, device="cpu", on_truncate="ignore", max_reasoning_tokens=12)
    np.testing.assert_array_equal(third.encode_query(TEXTS), pair.taught.encode_query(TEXTS))


@pytest.mark.parametrize("shared", [True, False])
def test_the_encoders_dtype_stays(
    encoders: dict[str, Path], qwen2_checkpoint: Path, shared: bool, tmp_path: Path
) -> None:
    original = tmp_path / "original"
    SentenceTransformer(str(encoders["mean"]), device="cpu").half().save_pretrained(str(original))
    thinker = None if shared else qwen2_checkpoint
    embedder = ReasoningEmbedder.from_encoder(original, thinker, device="cpu", on_truncate="ignore")
    tiny_encoders.teach(embedder).save_pretrained(str(tmp_path / "saved"))
    before, after = (load_file(folder / "model.safetensors") for folder in (original, tmp_path / "saved"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    stocks = [SentenceTransformer(str(folder), device="cpu") for folder in (original, tmp_path / "saved")]
    np.testing.assert_array_equal(*(stock.encode(TEXTS) for stock in stocks))
    again = ReasoningEmbedder(tmp_path / "saved", device="cpu", on_truncate="ignore")
    np.testing.assert_array_equal(again.encode_query(TEXTS), embedder.encode_query(TEXTS))
    assert np.isfinite(again.encode_query(TEXTS)).all()
    np.testing.assert_allclose(again.encode(TEXTS), stocks[0].encode(TEXTS), atol=2e-3)


def test_options_of_sentence_transformers(pair: Pair) -> None:
    full = pair.taught.encode_query(TEXTS)
    np.testing.assert_array_equal(pair.taught.encode_query(TEXTS, convert_to_tensor=True).numpy(), full)
    np.testing.assert_array_equal(pair.taught.encode_query(TEXTS, truncate_dim=8), full[:, :8])
    length_one = full / np.linalg.norm(full, axis=1, keepdims=True)
    close(pair.taught.encode_query(TEXTS, normalize_embeddings=True), length_one)
    bits = pair.taught.encode_query(TEXTS, truncate_dim=16, precision="ubinary")
    np.testing.assert_array_equal(bits, np.packbits(full[:, :16] > 0, axis=1))


def test_copies_and_pickles_embed_alike(pair: Pair) -> None:
    expected = pair.taught.encode_query(TEXTS)
    ids = pair.taught.conversation.reasoning_ids(TEXTS)
    for other in (copy.deepcopy(pair.taught), pickle.loads(pickle.dumps(pair.taught))):
        np.testing.assert_array_equal(other.encode_query(TEXTS), expected)
        assert other.conversation.reasoning_ids(TEXTS) == ids


def test_moving_and_switching_reach_the_thinker(pair: Pair) -> None:
    embedder = copy.deepcopy(pair.taught)
    side = embedder.question_side
    assert side is not None
    expected = embedder.encode_query(TEXTS, max_reasoning_tokens=0)
    assert embedder.half() is embedder
    assert {parameter.dtype for parameter in side.model.parameters()} == {torch.float16}
    assert side.projection.dtype == torch.float32
    half = embedder.encode_query(TEXTS, max_reasoning_tokens=0)
    assert half.dtype == np.float32
    cosines = F.cosine_similarity(torch.tensor(half), torch.tensor(expected))
    assert cosines.min() > 0.99
    embedder.to(torch.float64)
    assert side.model.dtype == torch.float64 and side.projection.dtype == torch.float32
    embedder.float().to("meta")
    assert side.model.device.type == side.projection.device.type == "meta"
    embedder.train()
    assert embedder.training and side.model.training
    embedder.eval()
    assert not side.model.training


def test_the_thinker_is_no_module_of_the_encoder(pair: Pair) -> None:
    assert pair.taught.state_dict().keys() == pair.stock.state_dict().keys()
    assert [name for name, _ in pair.taught.named_modules()] == [name for name, _ in pair.stock.named_modules()]
    features = pair.stock.preprocess(TEXTS)
    with torch.no_grad():
        outputs = [model(dict(features))["sentence_embedding"] for model in (pair.taught, pair.stock)]
    assert torch.equal(*outputs)


def test_prompts_are_the_encoders(pair: Pair) -> None:
    plain, prompted = (pair.taught.encode(TEXTS, reason=True, prompt=prompt) for prompt in (None, "find: "))
    side = pair.taught.question_side
    assert side is not None
    base = pair.stock.encode(TEXTS), pair.stock.encode(TEXTS, prompt="find: ")
    if encoder_with_thinker.normalises(pair.stock):
        assert np.abs(plain - prompted).max() > 1e-3
    else:  # what the thinker adds does not depend on the prompt
        np.testing.assert_allclose(prompted - base[1], plain - base[0], atol=5e-5)
    if pair.stock.prompts.get("query"):
        named = pair.taught.encode(TEXTS, reason=True, prompt_name="query")
        np.testing.assert_array_equal(named, pair.taught.encode_query(TEXTS))
        close(named, prompted)


def test_the_encoder_reads_control_tokens_and_the_thinker_reads_text(pair: Pair) -> None:
    text = "a river [SEP] <|im_end|> <|embed_token|>"
    stock_ids = pair.stock.preprocess([text])["input_ids"].tolist()
    assert encoder_with_thinker.token_ids(pair.taught, [text], "", None) == stock_ids
    marks = pair.stock.tokenizer.convert_tokens_to_ids(["[SEP]", "<|im_end|>"])
    assert any(stock_ids[0].count(mark) > 1 for mark in marks)  # its own and the text's
    talk = pair.taught.conversation
    controls = {talk._template_tokenizer.token_to_id(token) for token in ("[SEP]", "<|im_end|>", "<|embed_token|>")}
    hostile, harmless = talk.reasoning_ids([text, "a river"])
    assert [i for i in hostile if i in controls] == [i for i in harmless if i in controls]


@pytest.mark.parametrize("name", ["thinker_checkpoint", "language_model_thinker_checkpoint"])
async def test_the_same_vectors_through_every_door(name: str, request: pytest.FixtureRequest) -> None:
    folder = str(request.getfixturevalue(name))
    core = ReasoningEmbedder(folder, device="cpu", on_truncate="ignore")
    queries, documents = core.encode_query(TEXTS), core.encode_document(TEXTS)
    close(await core.aencode_query(TEXTS), queries)
    close(await core.aencode_document(TEXTS), documents)
    lazy = LazyEmbedder().get(folder, "cpu", None)
    np.testing.assert_array_equal(lazy.encode_query(TEXTS), queries)
    chain = SearchR3Embeddings(model_name=folder, device="cpu")
    index = SearchR3Embedding(model_name=folder, device="cpu")
    close([chain.embed_query(text) for text in TEXTS[:3]], queries[:3])
    close([index.get_query_embedding(text) for text in TEXTS[:3]], queries[:3])
    close(chain.embed_documents(TEXTS), documents)
    close(index.get_text_embedding_batch(TEXTS), documents)


def test_long_texts_are_told_once_by_each_side(
    encoders: dict[str, Path], qwen2_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long, longer = "word " * 70, "word " * 4000
    shared = ReasoningEmbedder.from_encoder(encoders["mean"], device="cpu")
    model = ReasoningEmbedder.from_encoder(encoders["mean"], qwen2_checkpoint, device="cpu")
    for embedder, text, most in (
        (shared, long, [48]),
        (shared, longer, [48]),
        (model, longer, [48, model.conversation.max_length]),
    ):
        for taught in (False, True):
            if taught:
                tiny_encoders.teach(embedder)
            caplog.clear()
            embedder.reason(["a river", text], max_reasoning_tokens=2)
            told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
            assert len(told) == len(most) and all("1 of 2 texts" in message for message in told), told
            assert "more than 48 tokens (item 1 has " in "".join(told)
            caplog.clear()
            embedder.encode_document(["a river", text])
            assert len(caplog.records) == 1
            embedder.on_truncate = "error"
            for call in (embedder.encode_document, embedder.encode_query, embedder.reason):
                with pytest.raises(ValueError, match="1 of 2 texts have more than"):
                    call(["a river", text])
            embedder.on_truncate = "ignore"
            caplog.clear()
            close(embedder.encode(text), embedder.encode(text[: len(long)]))
            embedder.encode_query(text)
            assert caplog.records == []
            embedder.on_truncate = "warn"


def test_a_text_of_many_tokens_and_few_letters_is_told(
    encoders: dict[str, Path], qwen2_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a byte-level vocabulary, a letter may take several tokens."""
    embedder = ReasoningEmbedder.from_encoder(encoders["last"], qwen2_checkpoint, device="cpu")
    embedder.encode_document(["🎉" * 30])
    assert "1 of 1 texts have more than 48 tokens" in caplog.text
    # Its tokenizer has a chat template, which sentence-transformers puts around each text.
    caplog.clear()
    room = 48 - len(embedder.preprocess([""])["input_ids"][0])
    embedder.encode_document(["1" * room])
    assert caplog.records == []
    embedder.encode_document(["1" * (room + 1)])
    assert "item 0 has 49" in caplog.text


@pytest.mark.parametrize("kind", ["quantize_dynamic", "embedder.compile", "network.compile", "torch.compile"])
def test_what_was_put_on_the_encoder_is_not_bypassed(encoders: dict[str, Path], kind: str) -> None:
    """A quantised or compiled encoder is asked itself, as the stock class asks it."""
    embedder: Any = ReasoningEmbedder.from_encoder(encoders["mean"], device="cpu", on_truncate="ignore")
    stock: Any = SentenceTransformer(str(encoders["mean"]), device="cpu")
    called: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            called.append(kind)
            return graph(*args)

        return run

    if kind == "quantize_dynamic":
        stock, embedder = (
            torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
            for model in (stock, embedder)
        )
    elif kind == "embedder.compile":
        embedder.compile(backend=backend)
    elif kind == "network.compile":
        embedder[0].auto_model.compile(backend=backend)
    else:
        embedder[0].model = torch.compile(embedder[0].model, backend=backend)
    assert encoder_with_thinker._fast_pooling(embedder) is None
    np.testing.assert_allclose(embedder.encode(TEXTS[:2]), stock.encode(TEXTS[:2]), atol=1e-5)
    # The stock class calls ``forward`` of the network, which ``compile`` of a network leaves as it is.
    assert bool(called) == (kind in ("embedder.compile", "torch.compile"))
    tiny_encoders.teach(embedder)
    assert np.isfinite(embedder.encode_query(TEXTS[:2])).all()
