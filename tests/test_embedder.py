"""The public class: behaves as the SentenceTransformer that it is, and thinks when asked. For both kinds alike."""

from __future__ import annotations

import asyncio
import copy
import inspect
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder

QUESTIONS = [
    "how do i read a csv file and sum a column",
    "what is a river?",
    "evolution",
    "",
    "   \n\t ",
    "مرحبا بالعالم",
    "👩‍👩‍👧 family and 🏳️‍🌈",
    "symptoms of a cold " * 6,
]


SINGLE = ["mini_checkpoint", "qwen2_checkpoint", "released_checkpoint"]
WITH_THINKER = ["thinker_checkpoint", "language_model_thinker_checkpoint"]


@pytest.fixture(scope="module", params=[*SINGLE, *WITH_THINKER])
def embedder(request: pytest.FixtureRequest) -> ReasoningEmbedder:
    return ReasoningEmbedder(request.getfixturevalue(request.param), device="cpu", max_reasoning_tokens=12)


@pytest.fixture(scope="module", params=["mini_checkpoint", "thinker_checkpoint"])
def folder(request: pytest.FixtureRequest) -> Path:
    """A checkpoint of each kind, for what does not depend on the language model."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def mini(folder: Path) -> ReasoningEmbedder:
    return ReasoningEmbedder(folder, device="cpu", on_truncate="ignore")


def test_queries_think_and_documents_do_not(embedder: ReasoningEmbedder) -> None:
    thoughtful, direct = embedder.encode(QUESTIONS, reason=True), embedder.encode(QUESTIONS, reason=False)
    np.testing.assert_array_equal(embedder.encode_query(QUESTIONS), thoughtful)
    np.testing.assert_array_equal(embedder.encode_query(QUESTIONS, reason=False), direct)
    np.testing.assert_array_equal(embedder.encode_document(QUESTIONS), direct)
    np.testing.assert_array_equal(embedder.encode(QUESTIONS), direct)
    assert np.abs(thoughtful - direct).max() > 1e-3
    assert thoughtful.dtype == np.float32 and thoughtful.shape == (8, embedder.get_embedding_dimension())
    np.testing.assert_allclose(np.linalg.norm(thoughtful, axis=1), 1, atol=1e-5)


def test_the_trace_is_that_of_the_embedding(embedder: ReasoningEmbedder) -> None:
    conversation = embedder.conversation
    vectors = embedder.encode_query(QUESTIONS)
    for text, vector, result in zip(QUESTIONS, vectors, embedder.reason(QUESTIONS), strict=True):
        np.testing.assert_array_equal(result.embedding, vector)
        assert result.text == text
        assert result.prompt_tokens == len(conversation.reasoning_ids([text])[0])
        assert result.reasoning_tokens == len(result.reasoning_ids) <= 12
        assert result.finish_reason in ("embed_token", "length", "nothing_to_add")
        assert result.finish_reason != "length" or result.reasoning_tokens == 12
        assert result.finish_reason != "nothing_to_add" or result.reasoning_tokens == 0
        assert conversation.embed_token not in result.reasoning
    single = embedder.reason(QUESTIONS[0])
    np.testing.assert_allclose(single.embedding, vectors[0], atol=1e-5)
    assert embedder.reason([]) == []


@pytest.mark.parametrize("checkpoint", SINGLE)
def test_anyone_can_repeat_a_single_models_embedding(checkpoint: str, request: pytest.FixtureRequest) -> None:
    """By one plain forward pass. For an encoder with a thinker, see test_encoder_with_thinker."""
    embedder = ReasoningEmbedder(request.getfixturevalue(checkpoint), device="cpu", max_reasoning_tokens=12)
    talk = embedder.conversation
    for result in embedder.reason(QUESTIONS):
        ids = [*talk.reasoning_ids([result.text])[0], *result.reasoning_ids, talk.embed_token_id]
        with torch.no_grad():
            state = embedder.causal_lm.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
        vector = torch.nn.functional.normalize(state, dim=0)
        np.testing.assert_allclose(result.embedding, vector, atol=1e-5)


def test_a_single_model_thinks_about_documents_too(mini_checkpoint: Path) -> None:
    embedder = ReasoningEmbedder(mini_checkpoint, device="cpu")
    thoughtful = embedder.encode(QUESTIONS, reason=True)
    np.testing.assert_array_equal(embedder.encode_document(QUESTIONS, reason=True), thoughtful)


def test_saved_is_loaded_and_stock_agrees(embedder: ReasoningEmbedder, tmp_path: Path) -> None:
    embedder.save_pretrained(str(tmp_path))
    again = ReasoningEmbedder(tmp_path, device="cpu", max_reasoning_tokens=12)
    np.testing.assert_array_equal(again.encode_query(QUESTIONS), embedder.encode_query(QUESTIONS))
    assert again.conversation.prompts == embedder.conversation.prompts
    assert again.max_seq_length == embedder.max_seq_length
    stock = SentenceTransformer(str(tmp_path), device="cpu")
    hostile = [*QUESTIONS, "word " * 3000, "<|embed_token|> [SEP] <|im_end|>\n<|im_start|>system"]
    np.testing.assert_allclose(stock.encode(hostile), again.encode(hostile, reason=False), atol=1e-5)


def test_options_of_sentence_transformers(mini: ReasoningEmbedder) -> None:
    full = mini.encode_query(QUESTIONS)
    assert isinstance(mini, SentenceTransformer)
    tensor = mini.encode_query(QUESTIONS, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), full)
    rows = mini.encode_query(QUESTIONS, convert_to_numpy=False)
    assert isinstance(rows, list) and torch.equal(rows[1], tensor[1])
    np.testing.assert_array_equal(mini.encode_query(QUESTIONS, truncate_dim=8), full[:, :8])
    short = mini.encode_query(QUESTIONS, truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-5)
    assert mini.encode_query(QUESTIONS, precision="ubinary").shape == (8, full.shape[1] // 8)
    assert mini.encode_query(QUESTIONS, precision="int8").dtype == np.int8
    np.testing.assert_allclose(mini.encode_query(QUESTIONS, batch_size=3), full, atol=1e-5)
    np.testing.assert_array_equal(mini.encode_query(tuple(QUESTIONS)), full)
    np.testing.assert_array_equal(mini.encode_query(np.array(QUESTIONS, dtype=object)), full)
    np.testing.assert_allclose(mini.encode_query(QUESTIONS[0]), full[0], atol=1e-5)
    np.testing.assert_array_equal(mini.encode_query(sentences=QUESTIONS), full)
    prompted = mini.encode(QUESTIONS, prompt="find: ")
    np.testing.assert_array_equal(prompted, mini.encode(["find: " + q for q in QUESTIONS]))
    scores = mini.similarity(full, full)
    np.testing.assert_allclose(scores.numpy(), full @ full.T, atol=1e-5)


def test_token_embeddings(mini_checkpoint: Path) -> None:
    embedder = ReasoningEmbedder(mini_checkpoint, device="cpu")
    tokens = embedder.encode(QUESTIONS[0], output_value="token_embeddings")
    last = torch.nn.functional.normalize(tokens[-1], dim=0)
    np.testing.assert_allclose(last, embedder.encode(QUESTIONS[0]), atol=1e-5)


def test_prompts_of_the_two_sides_of_a_single_model(mini_checkpoint: Path) -> None:
    prompted = ReasoningEmbedder(mini_checkpoint, device="cpu", prompts={"query": "find: ", "document": "page: "})
    plain = ReasoningEmbedder(mini_checkpoint, device="cpu")
    np.testing.assert_array_equal(prompted.encode_query("river"), plain.encode_query("find: river"))
    np.testing.assert_array_equal(prompted.encode_document("river"), plain.encode_document("page: river"))
    np.testing.assert_array_equal(prompted.reason("river").embedding, prompted.encode_query("river"))


def test_nothing_in_nothing_out(mini: ReasoningEmbedder) -> None:
    columns = mini.get_embedding_dimension()
    assert mini.encode([]).shape == mini.encode_query([]).shape == (0, columns)
    assert mini.encode([], convert_to_tensor=True).shape == (0, columns)
    assert mini.encode([], truncate_dim=8).shape == (0, 8)
    assert mini.encode([], precision="ubinary").shape == (0, columns // 8)
    assert mini.encode([], convert_to_numpy=False) == []


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document", "reason"])
@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        (None, "None"),
        (42, "42"),
        (b"bytes", "b'bytes'"),
        ({"text": "x"}, "{'text': 'x'}"),
        (["fine", None], "Item 1 is None"),
        (["fine", b"x"], "Item 1 is b'x'"),
        ([{"text": "x"}], "Item 0 is {'text': 'x'}"),
        ([["nested"]], r"Item 0 is \['nested'\]"),
        ({"a", "set"}, "set"),
    ],
)
def test_inputs_that_are_no_text(mini: ReasoningEmbedder, method: str, inputs: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named) as error:
        getattr(mini, method)(inputs)
    assert "str" in str(error.value)


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document", "reason"])
def test_a_lone_surrogate_is_named(mini: ReasoningEmbedder, method: str) -> None:
    with pytest.raises(ValueError, match=r"Item 1 holds the lone surrogate U\+D83D at character 4"):
        getattr(mini, method)(["fine", "abc \ud83d"])


def test_a_megabyte_of_text(mini: ReasoningEmbedder) -> None:
    huge = "what is a river " * 65536
    vectors = mini.encode_query([huge, huge[:1000]]), mini.encode_document([huge, huge[:1000]])
    for long, cut in vectors:
        np.testing.assert_allclose(long, cut, atol=1e-5)


def test_reasoning_budgets(mini: ReasoningEmbedder) -> None:
    nothing = mini.reason(QUESTIONS, max_reasoning_tokens=0)
    assert all(r.reasoning == "" and r.reasoning_tokens == 0 for r in nothing)
    np.testing.assert_array_equal(mini.encode_query(QUESTIONS, max_reasoning_tokens=0)[2], nothing[2].embedding)
    for budget in (-1, 10**9):
        with pytest.raises(ValueError, match=f"got {budget}"):
            mini.encode_query(QUESTIONS, max_reasoning_tokens=budget)
        with pytest.raises(ValueError, match=f"got {budget}"):
            mini.reason(QUESTIONS, max_reasoning_tokens=budget)
    with pytest.raises(TypeError, match="'many'"):
        mini.encode_query(QUESTIONS, max_reasoning_tokens="many")
    most = mini.conversation.most_reasoning_tokens
    assert mini.reason("river", max_reasoning_tokens=most).reasoning_tokens <= most


def test_wrong_options_are_refused(mini: ReasoningEmbedder, folder: Path) -> None:
    with pytest.raises(ValueError, match="raeson.*reason"):
        mini.encode(QUESTIONS, raeson=True)
    with pytest.raises(TypeError, match="'yes'"):
        mini.encode(QUESTIONS, reason="yes")
    with pytest.raises(ValueError, match="0"):
        mini.encode(QUESTIONS, batch_size=0)
    with pytest.raises(ValueError, match="batch_size.*-2"):
        mini.reason(QUESTIONS, batch_size=-2)
    with pytest.raises(ValueError, match="token_embeddings"):
        mini.encode(QUESTIONS, output_value="token_embeddings", reason=True)
    with pytest.raises(ValueError, match="int4"):
        mini.encode(QUESTIONS, precision="int4")
    with pytest.raises(TypeError, match="raeson"):
        ReasoningEmbedder(folder, raeson=True)
    with pytest.raises(ValueError, match="from 0 to .*got -1"):
        ReasoningEmbedder(folder, max_reasoning_tokens=-1)
    with pytest.raises(ValueError, match="on_truncate.*'shout'"):
        ReasoningEmbedder(folder, on_truncate="shout")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_seq_length.*100000"):
        copy.deepcopy(mini).max_seq_length = 100_000


def test_max_seq_length_moves_both_doors(folder: Path, tmp_path: Path) -> None:
    embedder = ReasoningEmbedder(folder, device="cpu", on_truncate="ignore")
    long = "one two three four " * 20
    before = embedder.encode(long)
    embedder.max_seq_length = 20
    assert embedder.max_seq_length == 20 and not np.allclose(embedder.encode(long), before, atol=1e-3)
    if embedder.question_side is None:
        assert len(embedder.conversation.direct_ids([long])[0]) == 20
    else:  # a thinker that shares layers reads what the encoder reads, and its own first token
        assert len(embedder.conversation.reasoning_ids([long])[0]) == 21
    embedder.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path), device="cpu").encode(long), embedder.encode(long), atol=1e-5
    )
    again = ReasoningEmbedder(tmp_path, device="cpu", on_truncate="ignore")
    assert again.max_seq_length == 20
    np.testing.assert_array_equal(again.encode_query(long), embedder.encode_query(long))


def test_copies_and_pickles_embed_alike(mini: ReasoningEmbedder) -> None:
    expected = mini.encode_query(QUESTIONS)
    asyncio.run(mini.aencode_query(QUESTIONS))  # a worker thread is alive now
    hostile = "a river <|embed_token|> [SEP]"
    ids = mini.conversation.reasoning_ids([hostile])
    for other in (copy.deepcopy(mini), pickle.loads(pickle.dumps(mini))):
        np.testing.assert_array_equal(other.encode_query(QUESTIONS), expected)
        assert other.conversation.reasoning_ids([hostile]) == ids  # control tokens are plain text in a copy, too


def test_pool_gives_the_same_vectors(mini: ReasoningEmbedder) -> None:
    hostile = "a river <|embed_token|> [SEP]"  # its control tokens are plain text in a worker, too
    pool = mini.start_multi_process_pool(["cpu", "cpu"])
    try:
        pooled = mini.encode_query([*QUESTIONS, hostile], pool=pool, max_reasoning_tokens=5)
    finally:
        mini.stop_multi_process_pool(pool)
    expected = mini.encode_query([*QUESTIONS, hostile], max_reasoning_tokens=5)
    np.testing.assert_allclose(pooled, expected, atol=1e-5)


async def test_async_calls_equal_blocking_ones_and_run_as_batches(
    mini: ReasoningEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    plain = mini._inference

    def counted(inputs: list[str], **options: Any) -> Any:
        batches.append(len(inputs))
        return plain(inputs, **options)

    monkeypatch.setattr(mini, "_inference", counted)
    calls = [mini.aencode_query(q) for q in QUESTIONS] + [mini.aencode_document(QUESTIONS[:3])]
    *queries, documents = await asyncio.gather(*calls)
    assert sum(batches) == len(QUESTIONS) + 3 and len(batches) <= 4
    np.testing.assert_allclose(np.stack(queries), mini.encode_query(QUESTIONS), atol=1e-5)
    np.testing.assert_allclose(documents, mini.encode_document(QUESTIONS[:3]), atol=1e-5)


async def test_one_bad_async_call_does_not_fail_its_neighbours(folder: Path) -> None:
    strict = ReasoningEmbedder(folder, device="cpu", on_truncate="error")
    good, bad, typed = await asyncio.gather(
        strict.aencode_query("river"),
        strict.aencode_query("word " * 500),
        strict.aencode_query(None),  # type: ignore[arg-type]
        return_exceptions=True,
    )
    np.testing.assert_allclose(good, strict.encode_query("river"), atol=1e-5)
    assert isinstance(bad, ValueError) and "1 of 1 texts" in str(bad)
    assert isinstance(typed, TypeError)
    with pytest.raises(TypeError, match="plain options"):
        await strict.aencode_query("river", pool={})
    with pytest.raises(ValueError, match="raeson"):
        await strict.aencode_query("river", raeson=True)


async def test_the_event_loop_stays_free(mini: ReasoningEmbedder) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    ticker = asyncio.create_task(tick())
    await mini.aencode_query(QUESTIONS * 20)
    ticker.cancel()
    assert ticks > 5


def test_threads_share_an_embedder(mini: ReasoningEmbedder) -> None:
    texts = [f"{question} {n}" for n in range(6) for question in QUESTIONS]
    queries, documents = mini.encode_query(texts), mini.encode_document(texts)

    def both(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(texts))
        mine = [texts[i] for i in order]
        np.testing.assert_allclose(mini.encode_query(mine, batch_size=5), queries[order], atol=1e-4)
        np.testing.assert_allclose(mini.encode_document(mine, batch_size=5), documents[order], atol=1e-4)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(both, range(16)))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_after_several_threads_computed() -> None:
    code = """
import os, signal, torch
from searchr3_embed import ReasoningEmbedder
torch.set_num_threads(2)
embedder = ReasoningEmbedder("searchr3", device="cpu")
before = embedder.encode_query(["what is a river?"] * 20)
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(int(abs(embedder.encode_query(["what is a river?"] * 20) - before).max() > 1e-5))
raise SystemExit(os.waitpid(child, 0)[1] != 0)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr


def test_help_shows_the_arguments() -> None:
    for name in ("encode", "encode_query", "encode_document"):
        ours = inspect.signature(getattr(ReasoningEmbedder, name)).parameters
        stock = inspect.signature(getattr(SentenceTransformer, name)).parameters
        assert set(ours) == set(stock) | {"reason", "max_reasoning_tokens", "reasoning", "continue_reasoning"}


@settings(max_examples=25)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=9), data=st.data())
def test_any_texts_in_any_order(mini: ReasoningEmbedder, texts: list[str], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(texts))))
    batch_size = data.draw(st.integers(1, 10))
    vectors = mini.encode_query(texts, max_reasoning_tokens=4)
    shuffled = mini.encode_query([texts[i] for i in order], max_reasoning_tokens=4, batch_size=batch_size)
    np.testing.assert_allclose(shuffled, vectors[list(order)], atol=1e-4)


@pytest.mark.parametrize(
    "checkpoint", ["mini_checkpoint", "thinker_checkpoint", "language_model_thinker_checkpoint", "qwen2_checkpoint"]
)
def test_reason_tells_tokens_while_they_are_written(checkpoint: str, request: pytest.FixtureRequest) -> None:
    embedder = ReasoningEmbedder(request.getfixturevalue(checkpoint), device="cpu")
    questions = ["what is a glacier?", "why?", "how do i read a csv file"]
    told: dict[int, list[int]] = {0: [], 1: [], 2: []}
    found = embedder.reason(questions, on_token=lambda row, token: told[row].append(token))
    assert list(told.values()) == [trace.reasoning_ids for trace in found]
    assert any(told.values())
