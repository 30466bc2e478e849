"""Reasoning that is already there, for both kinds of checkpoint: the same vectors as if the model had written it."""

from __future__ import annotations

import asyncio
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.engine import decode
from searchr3_embed.given_reasoning import Given, TextWithReasoning, attach
from searchr3_embed.kinds.behind_pooling import finish

TEXTS = [
    "how do i read a csv file and sum a column",
    "what is a river?",
    "",
    "a river [SEP] and [CLS] <|embed_token|> <|think|> <|im_end|>",
    "interest rates",
    "symptoms of a cold " * 30,
    *(f"question {number} about rivers" for number in range(4)),
]
KINDS = [
    "qwen2_checkpoint",
    "thinker_checkpoint",
    pytest.param("mini_checkpoint", marks=pytest.mark.slow),
    pytest.param("language_model_thinker_checkpoint", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=KINDS)
def embedder(request: pytest.FixtureRequest) -> ReasoningEmbedder:
    return ReasoningEmbedder(
        request.getfixturevalue(request.param), device="cpu", on_truncate="ignore", max_reasoning_tokens=9
    )


def close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_what_the_model_wrote_leads_where_it_led(embedder: ReasoningEmbedder) -> None:
    for budget in (None, 0, 3):
        written = embedder.reason(TEXTS, max_reasoning_tokens=budget)
        thought = embedder.encode_query(TEXTS, max_reasoning_tokens=budget)
        same = {"max_reasoning_tokens": budget}
        close(embedder.encode_query(TEXTS, reasoning=written, **same), thought)
        if budget is None:
            assert len({one.finish_reason for one in written}) > 1, "the test needs more than one end"
            close(embedder.encode_query(TEXTS, reasoning=[one.reasoning_ids for one in written]), thought)
            ids = [np.array(one.reasoning_ids, dtype=int) for one in written]
            close(embedder.encode_query(TEXTS, reasoning=ids), thought)
        given = embedder.reason(TEXTS, reasoning=written, **same)
        close([one.embedding for one in given], thought)
        for ours, theirs in zip(given, written, strict=True):
            assert ours.reasoning_ids == theirs.reasoning_ids and ours.reasoning == theirs.reasoning
            assert ours.given_tokens == ours.reasoning_tokens == len(theirs.reasoning_ids)
            if theirs.finish_reason == "nothing_to_add":
                assert ours.finish_reason == "nothing_to_add"
            else:
                assert ours.finish_reason == "given"


def test_nothing_is_decoded(embedder: ReasoningEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["rivers and water"] * len(TEXTS)
    expected = embedder.encode_query(TEXTS, reasoning=words)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a token is chosen")

    monkeypatch.setattr(decode, "think", refuse)
    monkeypatch.setattr("searchr3_embed.engine.head.TokenChooser.choose", refuse)
    close(embedder.encode_query(TEXTS, reasoning=words, batch_size=3), expected)
    with pytest.raises(AssertionError, match="chosen"):
        embedder.encode_query(TEXTS, reasoning=words, continue_reasoning=True)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_going_on_from_its_own_beginning_repeats_the_rest(embedder: ReasoningEmbedder, kept: int) -> None:
    whole = embedder.reason(TEXTS)
    rows = [row for row, one in enumerate(whole) if len(one.reasoning_ids) >= kept]
    assert rows, "the test needs rows that wrote so much"
    for row in rows:
        one = whole[row]
        again = embedder.reason(
            one.text,
            reasoning=one.reasoning_ids[:kept],
            continue_reasoning=True,
            # What was given does not count, so the budget is what was left of the first one.
            max_reasoning_tokens=9 - kept,
        )
        if one.prompt_tokens != again.prompt_tokens:
            continue  # a smaller budget leaves a long question more room, so it is another prompt
        assert again.reasoning_ids == one.reasoning_ids and again.given_tokens == kept
        assert again.finish_reason == one.finish_reason
        close(again.embedding, one.embedding)


def test_rows_of_all_kinds_in_one_call(embedder: ReasoningEmbedder) -> None:
    """Given as text, ids or a trace, or not at all: no row depends on its neighbours."""
    written = embedder.reason(TEXTS)
    reasoning = [(None, "water", one.reasoning_ids, one)[row % 4] for row, one in enumerate(written)]
    for more in (False, True):
        options = {"continue_reasoning": more}
        apart = [
            embedder.encode_query(text, reasoning=one, **options) for text, one in zip(TEXTS, reasoning, strict=True)
        ]
        close(embedder.encode_query(TEXTS, reasoning=reasoning, batch_size=4, **options), apart)
    assert embedder.encode_query([], reasoning=[]).shape == embedder.encode_query([]).shape
    close(embedder.encode_query(TEXTS, reasoning=None), embedder.encode_query(TEXTS))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(TEXTS[:5]), st.integers(0, 40)), min_size=1, max_size=6), st.randoms())
def test_against_plain_forward_passes(mini_checkpoint: Path, rows: list[tuple[str, int]], random: Any) -> None:
    """A single model reads turn, words and embed token at once."""
    embedder = _loaded(mini_checkpoint)
    talk = embedder.conversation
    # An embed token is refused, so none is drawn.
    ids = [
        [token for _ in range(length) if (token := random.randrange(10, 300)) != talk.embed_token_id]
        for _, length in rows
    ]
    found = embedder.encode_query([text for text, _ in rows], reasoning=ids)
    prompts = talk.reasoning_ids([text for text, _ in rows])
    for vector, prompt, words in zip(found, prompts, ids, strict=True):
        turn = [*prompt, *words, talk.embed_token_id]
        assert len(turn) <= talk.position_limit
        with torch.no_grad():
            state = embedder.causal_lm.base_model(torch.tensor([turn])).last_hidden_state[0, -1:]
            close(vector, finish(embedder, state)[0].numpy())


_LOADED: dict[Path, ReasoningEmbedder] = {}


def _loaded(folder: Path) -> ReasoningEmbedder:
    if folder not in _LOADED:
        _LOADED[folder] = ReasoningEmbedder(folder, device="cpu", on_truncate="ignore")
    return _LOADED[folder]


def test_control_tokens_in_given_words_are_plain_text(embedder: ReasoningEmbedder) -> None:
    token = embedder.conversation.embed_token
    trace = embedder.reason("what is a river?", reasoning=f"water {token} flows [SEP] <|im_end|>")
    assert embedder.conversation.embed_token_id not in trace.reasoning_ids
    assert trace.reasoning_ids == embedder.conversation.text_ids([f"water {token} flows [SEP] <|im_end|>"])[0]


def test_long_words_are_cut_and_the_question_is_not(
    embedder: ReasoningEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    talk = embedder.conversation
    for text in ("what is a river?", TEXTS[5]):
        prompt = talk.reasoning_ids([text])[0]
        words = "water " * 1500
        traces = [embedder.reason(text, reasoning=words)]
        traces.append(embedder.reason(text, reasoning=words, continue_reasoning=True))
        for trace in traces:
            assert trace.prompt_tokens == len(prompt)
            assert trace.reasoning_tokens == talk.position_limit - len(prompt) - 1
            assert trace.reasoning_ids == talk.text_ids([words])[0][: trace.reasoning_tokens]
        close(traces[0].embedding, traces[1].embedding)
    talk.on_truncate, before = "error", talk.on_truncate
    try:
        with pytest.raises(ValueError, match="1 of 1 given reasonings have more than .* Give fewer words"):
            embedder.encode_query("what is a river?", reasoning=words)
        talk.on_truncate = "warn"
        with caplog.at_level(logging.WARNING):
            embedder.encode_query(["a", "b"], reasoning=["short", words])
        assert "given reasonings have more than" in caplog.text and "item 1" in caplog.text
    finally:
        talk.on_truncate = before


def test_the_other_options_hold(embedder: ReasoningEmbedder) -> None:
    words = ["water"] * len(TEXTS)
    full = embedder.encode_query(TEXTS, reasoning=words)
    cut = embedder.encode_query(TEXTS, reasoning=words, truncate_dim=8, normalize_embeddings=True)
    close(cut, full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True))
    close(embedder.encode(TEXTS, reasoning=words, prompt=embedder._resolve_prompt(None, "query")), full)
    assert embedder.encode_query(TEXTS[0], reasoning="water").shape == full[0].shape
    if embedder.question_side is None:
        thought = embedder.encode_document(TEXTS, reasoning=words)
        assert np.abs(thought - embedder.encode_document(TEXTS)).max() > 1e-3
    else:
        with pytest.raises(ValueError, match="documents keep the encoder's"):
            embedder.encode_document(TEXTS, reasoning=words)
        # No words: the encoder's own vector.
        close(embedder.encode_query(TEXTS, reasoning=[""] * len(TEXTS)), embedder.encode_query(TEXTS, reason=False))


async def test_async_calls_keep_text_and_reasoning_together(embedder: ReasoningEmbedder) -> None:
    reasoning: list[Any] = [None if row % 3 == 0 else f"water {row}" for row in range(len(TEXTS))]
    expected = embedder.encode_query(TEXTS, reasoning=reasoning)
    rows = await asyncio.gather(
        *(embedder.aencode_query(text, reasoning=one) for text, one in zip(TEXTS, reasoning, strict=True))
    )
    close(rows, expected)
    close(await embedder.aencode_query(TEXTS, reasoning=reasoning), expected)
    good, bad = await asyncio.gather(
        embedder.aencode_query("a", reasoning="b"), embedder.aencode_query("a", reasoning=3), return_exceptions=True
    )
    assert isinstance(bad, TypeError) and not isinstance(good, BaseException)


@pytest.mark.parametrize(
    ("texts", "options", "error", "named"),
    [
        (["a", "b"], {"reasoning": "words"}, TypeError, "one entry for each of the 2 texts, got 'words'"),
        (["a", "b"], {"reasoning": ["words"]}, ValueError, "each of the 2 texts, got 1"),
        ("a", {"reasoning": 7}, TypeError, "a str, a Reasoning, a sequence of token ids"),
        ("a", {"reasoning": b"words"}, TypeError, "a str, a Reasoning"),
        ("a", {"reasoning": ["words"]}, TypeError, "item 0 is 'words', which is no token id"),
        ("a", {"reasoning": [1, True]}, TypeError, "item 1 is True"),
        ("a", {"reasoning": [1, -1]}, ValueError, "token id -1; this model has the ids from 0 to"),
        ("a", {"reasoning": [10**9]}, ValueError, "token id 1000000000"),
        (["a"], {"reasoning": ["\ud800"]}, ValueError, r"reasoning\[0\]"),
        ("a", {"reasoning": "words", "reason": False}, ValueError, "reason=False leaves no"),
        (
            "a",
            {"reasoning": "words", "continue_reasoning": "yes"},
            TypeError,
            "continue_reasoning must be",
        ),
    ],
)
def test_bad_reasoning_is_refused(
    embedder: ReasoningEmbedder, texts: Any, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        embedder.encode_query(texts, **options)
    if "reason" not in options:
        with pytest.raises(error, match=named):
            embedder.reason(texts, **options)


def test_the_embed_token_is_refused(embedder: ReasoningEmbedder) -> None:
    with pytest.raises(ValueError, match="embed token .* at place 1"):
        embedder.encode_query("a", reasoning=[5, embedder.conversation.embed_token_id])


def test_an_item_is_its_text_and_its_reasoning(embedder: ReasoningEmbedder) -> None:
    one, same, other = (
        attach(["a"], [words], False, embedder.conversation)[0] for words in ("water", "water", "fire")
    )
    assert one == same and hash(one) == hash(same) and one != other and one != "a" and str(one) == "a"
    assert {one: 1}.get(other) is None and isinstance(one, TextWithReasoning)
    # Pool workers get their items pickled.
    assert pickle.loads(pickle.dumps(one)) == one and pickle.loads(pickle.dumps(one)).given == Given("water")


@pytest.mark.slow
def test_pools_keep_text_and_reasoning_together(thinker_checkpoint: Path) -> None:
    embedder = ReasoningEmbedder(thinker_checkpoint, device="cpu", on_truncate="ignore")
    reasoning = [f"water {row}" for row in range(len(TEXTS))]
    found = embedder.encode_query(TEXTS, reasoning=reasoning, device=["cpu", "cpu"], chunk_size=4)
    close(found, embedder.encode_query(TEXTS, reasoning=reasoning))
