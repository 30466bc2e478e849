"""Pairs: what is accepted, what is left out and named, and a split that leaks nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3_embed.adapt.corpus import documents_of
from searchr3_embed.adapt.pairs import Pairs, pairs_of
from searchr3_embed.adapt.same_text import close, query_key, words
from searchr3_embed.adapt.split import components, split
from searchr3_embed.search.passages import Passage

DOCUMENTS = documents_of([Passage("a", "Rivers", "The Seine ends in the Channel."), Passage("b", "", "x = a + b")])


def test_ids_texts_and_feedback_logs_are_pairs(tmp_path: Path) -> None:
    lines = [
        {"query": "one", "positives": ["Rivers\nThe Seine ends in the Channel."]},
        {"query": "two", "positives": ["Rivers. The Seine  ends in the Channel."]},  # as others join a title
        {"query": "three", "positive": "The Seine ends in the Channel."},
        {"question": "four", "chosen": "b", "time": 12},
        {"question": "five", "ids": ["a", "b"]},
        {"query": "six", "positives": ["b"]},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = pairs_of(path, DOCUMENTS)
    assert dict(zip(found.questions, found.answers, strict=True)) == {
        "one": (0,), "two": (0,), "three": (0,), "four": (1,), "five": (0, 1), "six": (1,),
    }  # fmt: skip
    assert found.given == found.kept == 7 and not found.dropped


def test_what_is_left_out_is_counted_and_named() -> None:
    found = pairs_of(
        [("q", "a"), ("Q?", ["a", "b"]), ("r", "nowhere"), (" ", "a"), ("s", ""), ("t", []), ("x = a + b", "b")],
        DOCUMENTS,
    )
    assert found.questions == ("q",) and found.answers == ((0, 1),)
    assert {reason: len(names) for reason, names in found.dropped.items()} == {
        "duplicate": 1,
        "document not in the corpus": 1,
        "empty question": 1,
        "empty document": 1,
        "question without a document": 2,
        "document that only repeats the question": 1,
    }
    assert "nowhere" in found.dropped["document not in the corpus"][0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[1]", "pairs.jsonl:1: expected a question with its documents, found \\[1\\]"),
        ("{", "pairs.jsonl:1: not JSON"),
        ('{"query": 3, "id": "a"}', "pairs.jsonl:1: no question"),
        ('{"query": "q"}', "pairs.jsonl:1: no document"),
        ('{"query": "q", "id": {}}', "'id' must be a text"),
        ('{"query": "\\ud800", "id": "a"}', "lone surrogate"),
        ('{"query": "q", "id": "z"}', "No pair is left: 1 document not in the corpus"),
        ("", "There are no pairs"),
    ],
)
def test_bad_pairs_are_told_with_their_place(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=words):
        pairs_of(path, DOCUMENTS)


def test_documents_are_checked() -> None:
    assert documents_of({"a": "x", "b": " "}).dropped == {"empty document": ("b",)}
    with pytest.raises(ValueError, match="'a'; ids must be different"):
        documents_of([("a", "x"), ("a", "y")])
    with pytest.raises(ValueError, match="no documents"):
        documents_of([])
    with pytest.raises(TypeError, match="'0' is 3"):
        documents_of([3])
    with pytest.raises(TypeError, match="documents must be"):
        documents_of(3)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sets(st.integers(0, 30), min_size=1, max_size=3), min_size=6, max_size=40),
    st.lists(st.sampled_from("abcdefgh"), min_size=40, max_size=40),
    st.integers(0, 3),
)
def test_nothing_leaks_between_the_parts(answers: list[set[int]], letters: list[str], seed: int) -> None:
    chosen = enumerate(letters[: len(answers)])
    questions = [f"{letter} is what {letter} was {number % 7}" for number, letter in chosen]
    pairs = Pairs(tuple(questions), tuple(tuple(sorted(some)) for some in answers), 0, {})
    assert sorted(number for group in components(pairs) for number in group) == list(range(len(pairs)))
    try:
        training, apart = split(pairs, 0.2, seed)
    except ValueError as error:
        assert "hang together" in str(error)
        return
    assert sorted([*training, *apart]) == list(range(len(pairs)))
    assert len(apart) <= max(1, 0.25 * len(pairs) + 1)
    for one in training:
        for other in apart:
            assert not set(pairs.answers[one]) & set(pairs.answers[other])
            assert query_key(questions[one]) != query_key(questions[other])
            assert not close(set(words(questions[one])), set(words(questions[other])))
