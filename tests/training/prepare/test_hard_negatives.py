"""Hard negatives: what is mined, what is never mined, the cache, the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers.util
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.adapt.same_text import document_key, query_key
from training.data.records import Record, read_records, write_records
from training.prepare import hard_negatives
from training.prepare.hard_negatives import MinerSettings, mine

WORDS = "tide moon sea ship sail bread yeast oven dough rise violin bow string play".split()


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    """A real SentenceTransformer in which texts with common words are similar: the mean of one vector per word."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0} | {word: i for i, word in enumerate(WORDS, 1)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.eye(len(WORDS) + 1, dtype=np.float32)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


@pytest.fixture
def records() -> list[Record]:
    return [
        Record("tide moon", ("tide moon sea",), (), "s"),
        Record("Tide, moon!", ("moon tide rise",), (), "s"),
        Record("ship sea", ("ship sail sea",), ("yeast", "tide moon  sea"), "s", "sail"),
        Record("dough rise", ("yeast dough rise", "oven dough rise"), (), "s"),
    ]


def test_the_nearest_wrong_documents_are_mined(model: SentenceTransformer, records: list[Record]) -> None:
    mined = mine(records, model, MinerSettings(num_negatives=2))
    assert [(r.query, r.positives, r.source, r.reasoning) for r in mined] == [
        (r.query, r.positives, r.source, r.reasoning) for r in records
    ]
    # The two spellings of one query share positives and negatives: sea is the only other word in common.
    assert mined[0].negatives == mined[1].negatives
    assert not {"tide moon sea", "moon tide rise"} & set(mined[0].negatives)
    # The labelled ones come first, and are candidates of the other queries.
    assert mined[2].negatives[:2] == ("yeast", "tide moon  sea")
    assert mined[3].negatives[0] == "moon tide rise"


def test_the_margin_leaves_out_what_may_be_right(model: SentenceTransformer) -> None:
    # An unmarked right answer: as good as the positive.
    rows = [Record("tide moon", ("tide moon sea",), (), "s"), Record("bread", ("tide moon ship",), (), "s")]
    assert mine(rows, model, MinerSettings(relative_margin=None))[0].negatives == ("tide moon ship",)
    assert mine(rows, model, MinerSettings())[0].negatives == ()
    far = [*rows, Record("sail", ("tide bow string",), (), "s")]
    assert mine(far, model, MinerSettings())[0].negatives == ("tide bow string",)
    assert mine(far, model, MinerSettings(max_score=0.1))[0].negatives == ()


def test_a_document_that_repeats_the_query_is_no_negative(model: SentenceTransformer) -> None:
    rows = [Record("tide moon", ("sea",), (), "s"), Record("bow", ("Tide moon.", "play bow"), (), "s")]
    assert mine(rows, model, MinerSettings(relative_margin=None))[0].negatives == ("play bow",)


phrases = st.lists(st.sampled_from(WORDS[:6]), min_size=1, max_size=3).map(" ".join)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            Record,
            phrases,
            st.lists(phrases, min_size=1, max_size=3).map(tuple),
            st.lists(phrases, max_size=2).map(tuple),
            st.just("s"),
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([None, 0.05]),
)
def test_no_positive_of_a_query_is_mined_for_it(
    model: SentenceTransformer, rows: list[Record], margin: float | None
) -> None:
    mined = mine(rows, model, MinerSettings(num_negatives=3, relative_margin=margin))
    known = {document_key(text) for row in rows for text in row.positives + row.negatives}
    for old, new in zip(rows, mined, strict=True):
        added = [text for text in new.negatives if text not in old.negatives]
        right = {document_key(t) for r in rows if query_key(r.query) == query_key(old.query) for t in r.positives}
        assert not right & {document_key(text) for text in added}
        assert {document_key(text) for text in added} <= known
        assert len(added) <= 3 and len(new.negatives) == len(set(new.negatives))


def test_results_are_cached_by_content(
    model: SentenceTransformer, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = sentence_transformers.util.mine_hard_negatives

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(sentence_transformers.util, "mine_hard_negatives", counted)
    first = mine(records, model, cache=tmp_path)
    assert mine(records, model, cache=tmp_path) == first and len(calls) == 1
    # A reasoning that is written later changes nothing that was mined.
    thought = [Record(r.query, r.positives, r.negatives, r.source, "words") for r in records]
    assert [r.negatives for r in mine(thought, model, cache=tmp_path)] == [r.negatives for r in first]
    assert len(calls) == 1
    mine(records, model, MinerSettings(max_score=0.9), tmp_path)
    mine(records[:-1], model, cache=tmp_path)
    assert len(calls) == 3
    embedding = next(model.parameters())
    embedding.data[1, 1] += 0.5
    mine(records, model, cache=tmp_path)
    embedding.data[1, 1] -= 0.5
    assert len(calls) == 4 and len(list(tmp_path.glob("*.json"))) == 4
    assert not list(tmp_path.glob("*.part"))


def test_our_checkpoints_mine(records: list[Record], mini_checkpoint: Path) -> None:
    mined = mine(records, ReasoningEmbedder(str(mini_checkpoint), device="cpu"), MinerSettings(relative_margin=None))
    assert all(len(new.negatives) > len(old.negatives) for new, old in zip(mined, records, strict=True))


def test_the_command(
    model: SentenceTransformer,
    records: list[Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(hard_negatives, "load_model", lambda *_: model)
    write_records(tmp_path / "in" / "sea.jsonl", records)
    write_records(tmp_path / "in" / "play.jsonl.gz", [Record("bow", ("play bow",), ("play violin",), "violin")])
    common = ["--data", str(tmp_path / "in"), "--cache", str(tmp_path / "cache")]
    assert hard_negatives.main([*common, "--source", "sea", "play", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == ""  # what the miner prints goes to stderr
    sea = read_records(tmp_path / "out" / "sea.jsonl.gz")
    assert [r.query for r in sea] == [r.query for r in records] and sea[0].negatives and sea[2].reasoning == "sail"
    # Sources do not mix, and the source of a record is kept.
    assert read_records(tmp_path / "out" / "play.jsonl.gz") == [
        Record("bow", ("play bow",), ("play violin",), "violin")
    ]
    one = tmp_path / "one.jsonl"
    assert hard_negatives.main([*common, "--source", "sea", "--out", str(one), "--num-negatives", "1"]) == 0
    assert max(len(r.negatives) for r in read_records(one)) == 3  # two labelled, one mined


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "sea", "gone", "--out", "out"], "source 'gone': expected a name"),
        (["--source", "sea", "other/sea.jsonl", "--out", "out"], "several are called 'sea'"),
        (["--source", "sea", "play", "--out", "out.jsonl"], "one file takes one source, found 2"),
        (["--source", "sea", "--out", "out", "--num-negatives", "0"], "num_negatives must be at least 1"),
        (["--source", "sea", "--out", "out", "--range-min", "200"], "range_min must be smaller than range_max"),
        (["--source", "sea", "--out", "out", "--model", ""], "expected one of our checkpoints"),
    ],
)
def test_command_errors(
    model: SentenceTransformer,
    records: list[Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(hard_negatives, "load_model", lambda *_: model)
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "sea.jsonl", records)
    assert hard_negatives.main(["--data", ".", *options]) == 2
    assert message in capsys.readouterr().err
