"""Records out of plain text: nothing lost, nothing made up, the same every time."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.reading import load
from training.prepare import cloze
from training.prepare.cloze import ClozeSettings, passages, records

PARAGRAPH = (
    "Glaciers are rivers of ice that move slowly downhill. They carve valleys out of solid rock as they go! "
    "Where does all the meltwater run in a warm summer? Most of it feeds the streams of the plain below."
)
OTHER = (
    "Rust prevents data races while the program is still being compiled by you. "
    "The borrow checker follows every reference in it from its birth to its end."
)
WORDS = st.sampled_from(["tide", "moon.", "ship", "Sea!", "wind", "Sand?", "a", "3.5", "Mr."])
LINES = st.lists(st.lists(WORDS, max_size=30).map(" ".join), max_size=12)


@given(LINES, st.integers(1, 9), st.integers(0, 40))
def test_passages_hold_every_word_once_in_order_and_keep_to_their_block(
    lines: list[str], least: int, more: int
) -> None:
    settings = ClozeSettings(least_words=least, most_words=least + more)
    found = [" ".join(passage) for passage in passages(lines, settings, random.Random(0))]
    assert " ".join(found).split() == " ".join(lines).split()
    blocks = [
        " ".join(block.split()) for block in "\n".join(line if line.split() else "\n" for line in lines).split("\n\n")
    ]
    assert all(any(passage in block for block in blocks) for passage in found)


@given(LINES, st.integers(0, 5))
def test_records_are_a_sentence_and_the_rest_and_repeat(lines: list[str], seed: int) -> None:
    settings = ClozeSettings(least_words=5, most_words=60, kept=0, seed=seed)
    found, unasked = records(lines, "text", settings)
    assert (found, unasked) == records(lines, "text", settings)
    words = " ".join(lines).split()
    for record in found:
        (positive,) = record.positives
        asked = record.query.split()
        assert 5 <= len(asked) <= 40 and len(positive.split()) >= 10
        assert record.reasoning is None and not record.negatives and record.source == "text"
        assert set(asked) | set(positive.split()) <= set(words)


def test_the_question_stays_in_the_share_that_is_asked_for() -> None:
    lines = [line for number in range(300) for line in (f"Number {number}. {PARAGRAPH}", "")]
    for kept in (0.0, 0.3, 1.0):
        found, unasked = records(lines, "ice", ClozeSettings(least_words=200, most_words=200, kept=kept))
        assert len(found) == 300 and unasked == 0
        share = sum(record.query in record.positives[0] for record in found) / 300
        assert abs(share - kept) < 0.1
        assert len({record.query for record in found}) > 3, "not always the same sentence"


def test_lengths_vary_between_the_bounds() -> None:
    lines = [PARAGRAPH] * 200
    words = [len(" ".join(p).split()) for p in passages(lines, ClozeSettings(20, 160), random.Random(1))]
    longest = max(len(sentence.split()) for sentence in cloze.sentences(PARAGRAPH))
    assert min(words[:-1]) >= 20 and max(words) < 160 + longest
    assert min(words[:-1]) < 50 and max(words) > 120


def test_files_become_sources_that_training_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ice.txt").write_text(f"{PARAGRAPH}\n\n{PARAGRAPH}", encoding="utf-8")
    (tmp_path / "zip.txt.gz").write_bytes(gzip.compress(OTHER.encode()))
    out = tmp_path / "out"
    texts = [str(tmp_path / "ice.txt"), str(tmp_path / "zip.txt.gz")]
    assert cloze.main(["--text", *texts, "--out", str(out), "--kept", "0"]) == 0
    assert "zip: 1 records; 0 passages without" in capsys.readouterr().err
    loaded = load({"ice": 1.0, "zip": 1.0}, out)
    assert loaded.sources["ice"][0].query in PARAGRAPH
    assert {loaded.sources["zip"][0].query, *loaded.sources["zip"][0].positives} == set(cloze.sentences(OTHER))
    first = (out / "ice.jsonl.gz").read_bytes()
    assert cloze.main(["--text", *texts, "--out", str(out), "--kept", "0"]) == 0
    assert (out / "ice.jsonl.gz").read_bytes() == first


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"", [], "no text"),
        (b"\xff\xfe bad", [], "can't decode"),
        (b"Short. Very short.", [], "has a sentence to ask with"),
        (PARAGRAPH.encode(), ["--least-words", "0"], "least_words must be between 1 and most_words (160), got 0"),
        (PARAGRAPH.encode(), ["--least-words", "9", "--most-words", "3"], "got 9"),
        (PARAGRAPH.encode(), ["--kept", "1.5"], "kept must be between 0 and 1, got 1.5"),
        (PARAGRAPH.encode(), ["--most", "0"], "most must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, arguments: list[str], message: str
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    out = tmp_path / "out"
    assert cloze.main(["--text", str(tmp_path / "text.txt"), "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_missing_broken_and_equally_named_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(PARAGRAPH, encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(b"no gzip")
    for texts, message in (
        (["nowhere.txt"], "nowhere.txt"),
        (["a.txt.gz"], "a.txt.gz"),
        (["a.txt", "a.txt.gz"], "two files have the name of one source"),
    ):
        assert cloze.main(["--text", *(str(tmp_path / text) for text in texts), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


def test_most_bounds_the_records(tmp_path: Path) -> None:
    lines = [PARAGRAPH, ""] * 50
    few, _ = records(lines, "ice", ClozeSettings(most=7))
    every, _ = records(lines, "ice", ClozeSettings())
    assert len(few) == 7 and all(record in every for record in few)
