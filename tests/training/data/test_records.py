"""Training records: reading, cleaning, guarding against evaluation queries, bad input."""

from __future__ import annotations

import gzip
import json
import logging
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.beir import DataError
from training.data.records import (
    Guard,
    Record,
    clean,
    close,
    deduplicate,
    load,
    mix,
    query_key,
    read_records,
    words,
    write_records,
)

Rows = list[dict[str, Any]]


def write_rows(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_set(folder: Path, queries: dict[str, str], documents: dict[str, str], **qrels: str) -> Path:
    """A BEIR-layout folder; ``qrels`` maps a split to "query document score" lines."""
    write_rows(folder / "corpus.jsonl", [{"_id": i, "title": "", "text": text} for i, text in documents.items()])
    write_rows(folder / "queries.jsonl", [{"_id": i, "text": text} for i, text in queries.items()])
    (folder / "qrels").mkdir()
    for split, lines in qrels.items():
        table = "".join(line.strip().replace(" ", "\t") + "\n" for line in lines.splitlines())
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + table)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sources, by name."""
    write_rows(
        tmp_path / "train" / "tides.jsonl",
        [
            {"query": "Why do tides rise?", "positives": ["The moon pulls."], "negatives": ["Bread rises."]},
            {"query": "what is a neap tide", "positives": ["A weak tide."], "reasoning": "moon sun", "source": "sea"},
        ],
    )
    rows = [{"query": "what is yeast", "positives": ["A fungus."]}]
    (tmp_path / "train" / "bread.jsonl.gz").write_bytes(gzip.compress(json.dumps(rows[0]).encode()))
    return tmp_path / "train"


def test_names_and_files(folder: Path) -> None:
    loaded = load({"tides": 1, str(folder / "bread.jsonl.gz"): 0.5}, folder)
    assert list(loaded.sources) == ["tides", str(folder / "bread.jsonl.gz")]
    first, second = loaded.sources["tides"]
    assert first == Record("Why do tides rise?", ("The moon pulls.",), ("Bread rises.",), "tides")
    assert second == Record("what is a neap tide", ("A weak tide.",), (), "sea", "moon sun")
    assert [r.source for r in loaded.sources[str(folder / "bread.jsonl.gz")]] == ["bread"]
    assert loaded.dropped == {"tides": {}, str(folder / "bread.jsonl.gz"): {}}
    # The keys are those of the weights, which is what mixing needs.
    assert len(mix(loaded.sources, {"tides": 2, str(folder / "bread.jsonl.gz"): 1}, 1, seed=0)) == 5


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    return write_set(
        tmp_path / "sea",
        {"1": "why do tides rise", "2": "how deep is the sea", "3": "who sails", "4": "nobody judged this question"},
        {"a": "The moon pulls.", "b": "The sun pulls too.", "c": "Ships sail.", "d": " "},
        train="1 a 1\n1 b 2\n1 c 0\n2 d 1",
        dev="2 b 1",
        test="3 c 1",
    )


def test_beir_folder_gives_the_records_of_a_split(beir: Path) -> None:
    loaded = load({str(beir): 1, f"{beir}:dev": 1}, None)
    # Document d is empty: query 2 has no other, so it goes; both are counted.
    assert loaded.sources[str(beir)] == [
        Record("why do tides rise", ("The moon pulls.", "The sun pulls too."), ("Ships sail.",), "sea")
    ]
    assert loaded.dropped[str(beir)] == {"empty text": 1, "record with an empty text only": 1}
    assert [r.query for r in loaded.sources[f"{beir}:dev"]] == ["how deep is the sea"]


def test_guard_lets_train_queries_of_an_evaluation_set_pass(beir: Path) -> None:
    # Query 2 is judged in dev as well, and query 4 nowhere: both count as evaluation queries.
    rows = [{"query": f"{text}!", "positives": ["x"]} for text in ("Why do tides rise", "How deep is the sea")]
    rows += [{"query": "nobody judged this question", "positives": ["x"]}]
    path = write_rows(beir.parent / "rows.jsonl", rows)
    loaded = load({str(path): 1}, None, exclude=[beir])
    assert [r.query for r in loaded.sources[str(path)]] == ["Why do tides rise!"]


def test_qrels_row_pointing_nowhere_is_named(beir: Path) -> None:
    with (beir / "qrels" / "train.tsv").open("a") as qrels:
        qrels.write("1\tzz\t1\n")
    with pytest.raises(DataError, match=r"train\.tsv:6: document 'zz' is not in the corpus"):
        load({str(beir): 1}, None)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [{"Question": "q", "answer": "p", "negative_1": "n", "negative_2": "m"}],
            [Record("q", ("p",), ("n", "m"), "set")],
        ),
        (
            [{"anchor": "q", "positive": ["p", "", "r"], "negative": None, "reasoning": "t"}],
            [Record("q", ("p", "r"), (), "set", "t")],
        ),
        (
            [{"query": "q", "positives": ["p"], "negatives": ["n"]}, {"query": "w", "positives": [], "negatives": []}],
            [Record("q", ("p",), ("n",), "set")],
        ),
    ],
)
def test_hub_columns(tmp_path: Path, rows: Rows, expected: list[Record]) -> None:
    # The library reads a local folder by the same call as a dataset of the hub.
    write_rows(tmp_path / "set" / "train.jsonl", rows)
    spec = f"hub:{tmp_path / 'set'}"
    for each in (spec, f"{spec}:train"):
        assert load({each: 1}, None).sources[each] == expected


@pytest.mark.parametrize(
    ("spec", "rows", "message"),
    [
        ("hub:{}", [{"title": "q", "text": "p"}], r"the columns are \['title', 'text'\]; expected a query \(query, "),
        ("hub:{}:nowhere", [{"query": "q", "answer": "p"}], r"cannot be loaded.*nowhere"),
        ("hub:{}", [{"query": "q", "answer": 3}], r"row 0: 'positives' must hold non-empty text, found 3"),
        ("hub:{}:a:b:c", [{"query": "q", "answer": "p"}], "expected hub:name, hub:name:split or"),
        ("hub:", [{"query": "q", "answer": "p"}], "expected hub:name"),
    ],
)
def test_hub_errors(tmp_path: Path, spec: str, rows: Rows, message: str) -> None:
    write_rows(tmp_path / "set" / "train.jsonl", rows)
    with pytest.raises(DataError, match=message):
        load({spec.format(tmp_path / "set"): 1}, None)


def test_what_teaches_nothing_is_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"query": "What is yeast?", "positives": ["A fungus.", "A  fungus.", "what is yeast"], "negatives": []},
        {"query": "q", "positives": ["p"], "negatives": ["p", "n", " n", "m"]},
        {"query": "only itself", "positives": ["Only itself."]},
        {"query": "what is YEAST", "positives": ["A fungus."]},
        {"query": "what is yeast", "positives": ["Another answer."]},
        {"query": "a == b", "positives": ["a == b is equality", "a != b is equality"]},
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl", [rows[1], {"query": "new", "positives": ["p"]}])
    with caplog.at_level(logging.INFO):
        loaded = load({"a": 1, "b": 1}, tmp_path)
    assert loaded.sources["a"] == [
        Record("What is yeast?", ("A fungus.",), (), "a"),
        Record("q", ("p",), ("n", "m"), "a"),
        Record("what is yeast", ("Another answer.",), (), "a"),
        Record("a == b", ("a == b is equality", "a != b is equality"), (), "a"),
    ]
    assert [r.query for r in loaded.sources["b"]] == ["new"]  # the first source wins
    assert loaded.dropped["a"] == {
        "repeated positive": 1,
        "positive equal to the query": 1,
        "negative equal to a positive": 1,
        "repeated negative": 1,
        "record whose only positive is the query": 1,
        "repeated record": 1,
    }
    assert loaded.dropped["b"]["repeated record"] == 1
    table = caplog.messages[-1].splitlines()
    assert [line.split()[:3] for line in table[1:]] == [["a", "6", "4"], ["b", "2", "1"], ["total", "8", "5"]]
    assert "1 repeated record" in table[2]


def test_evaluation_queries_are_dropped_or_refused(
    tmp_path: Path, beir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sets").mkdir()
    beir.rename(tmp_path / "sets" / "sea")
    long = "which of the seven seas of the old world is the deepest one by far and why is that so"
    write_set(tmp_path / "sets" / "long", {"1": long}, {"a": "x"}, test="1 a 1")
    rows = [{"query": q, "positives": ["p"]} for q in ("Who sails?", long.replace("so", "not so"), "who sails ships")]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        loaded = load({str(path): 1}, None, exclude=[tmp_path / "sets"])
    assert [r.query for r in loaded.sources[str(path)]] == ["who sails ships"]
    assert loaded.dropped[str(path)] == {
        "query equal to an evaluation query": 1,
        "query close to an evaluation query": 1,
    }
    assert "2 records dropped" in caplog.text and "'Who sails?' equals 'who sails' of sea" in caplog.text
    with pytest.raises(DataError, match="2 queries must not be trained on: 'Who sails.' equals 'who sails' of sea"):
        load({str(path): 1}, None, exclude=[tmp_path / "sets"], strict=True)


BAD_LINES = {
    "not JSON": ("{", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "a list": ("[]", "expected a record, an object with query and positives, found list"),
    "no query": ('{"positives": ["p"]}', "'query' must hold non-empty text, found None"),
    "blank query": ('{"query": " ", "positives": ["p"]}', "'query' must hold non-empty text, found ' '"),
    "no positives": ('{"query": "q"}', "'positives' must be a list of texts, found None"),
    "zero positives": ('{"query": "q", "positives": []}', "'positives' is empty"),
    "text as positives": ('{"query": "q", "positives": "p"}', "'positives' must be a list of texts, found 'p'"),
    "number": ('{"query": "q", "positives": [3]}', "'positives' must hold non-empty text, found 3"),
    "blank negative": ('{"query": "q", "positives": ["p"], "negatives": [""]}', "'negatives' must hold non-empty"),
    "negatives object": ('{"query": "q", "positives": ["p"], "negatives": {}}', "'negatives' must be a list"),
    "reasoning": ('{"query": "q", "positives": ["p"], "reasoning": 1}', "'reasoning' must hold non-empty text"),
    "source": ('{"query": "q", "positives": ["p"], "source": []}', "'source' must hold non-empty text"),
    "surrogate": ('{"query": "\\ud800", "positives": ["p"]}', "'query' holds a lone surrogate"),
    "not UTF-8": ("\udcff", "not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_LINES)
@pytest.mark.parametrize("zipped", [False, True])
def test_bad_line_is_named(tmp_path: Path, case: str, zipped: bool) -> None:
    line, message = BAD_LINES[case]
    content = ('{"query": "q", "positives": ["p"]}\n\n' + line + "\n").encode("utf-8", "surrogateescape")
    path = tmp_path / ("rows.jsonl.gz" if zipped else "rows.jsonl")
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError) as caught:
        load({str(path): 1}, None)
    assert str(caught.value).startswith(f"{path}:3: {message}")
    assert len(str(caught.value)) < 400


def test_bad_files_and_requests_are_named(folder: Path) -> None:
    (folder / "empty.jsonl").write_text("\n")
    (folder / "broken.jsonl.gz").write_bytes(gzip.compress(b"{}" * 99)[:-9])
    write_rows(folder / "useless.jsonl", [{"query": "q", "positives": ["Q!"]}])
    (folder / "bread.jsonl").write_text("")
    (folder / "nothing").mkdir()
    for specs, message in [
        ({"empty": 1}, r"empty\.jsonl: empty"),
        ({"broken": 1}, r"broken\.jsonl\.gz:1: cannot be read"),
        ({"useless": 1}, "'useless': nothing left of 1 records; dropped: 1 record whose only positive is the query"),
        ({"tides": 1, f"{folder}/tides.jsonl": 1}, "nothing left of 2 records; dropped: 2 repeated record"),
        ({"bread": 1}, r"holds both bread\.jsonl and bread\.jsonl\.gz"),
        ({"gamma": 1}, r"source 'gamma': expected a name \(.* holds \['bread', .*hub:name"),
        ({str(folder / "gamma.jsonl"): 1}, r"gamma\.jsonl: no such file"),
        ({str(folder / "nothing"): 1}, r"nothing: corpus\.jsonl or corpus\.jsonl\.gz is missing"),
        ({"tides": 0}, "'tides': the weight must be a number above 0, found 0"),
        ({"tides": "2"}, "found '2'"),
        ({"tides": float("nan")}, "found nan"),
    ]:
        with pytest.raises(DataError, match=message):
            load(specs, folder)
    with pytest.raises(DataError, match="no folder was given"):
        load({"tides": 1}, None)
    with pytest.raises(DataError, match="not a folder"):
        load({"tides": 1}, folder, exclude=[folder / "nowhere"])


def test_killed_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    write_records(path, [Record("q", ("p",), (), "s")])

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_records(path, [Record("other", ("p",), (), "s")])
    assert [r.query for r in read_records(path)] == ["q"]


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)
some_records = st.lists(
    st.builds(
        Record,
        texts,
        st.lists(texts, min_size=1, max_size=3).map(tuple),
        st.lists(texts, max_size=3).map(tuple),
        texts,
        st.none() | st.just("") | texts,
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40)
@given(some_records, st.booleans())
def test_written_is_read(rows: list[Record], zipped: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("rows.jsonl.gz" if zipped else "rows.jsonl")
        write_records(path, rows)
        content = path.read_bytes()
        assert read_records(path) == rows
        write_records(path, rows)
        assert path.read_bytes() == content


# Few words, so that equal and nearly equal texts are common.
phrases = st.lists(st.sampled_from("a b c d e f g h i j".split()), min_size=1, max_size=9).map(" ".join)


@given(st.lists(phrases, max_size=6), phrases)
def test_guard_equals_brute_force(evaluation: list[str], query: str) -> None:
    match = Guard(dict.fromkeys(evaluation, "set")).match(query)
    equal = [text for text in evaluation if query_key(text) == query_key(query)]
    near = [text for text in evaluation if close(set(words(text)), set(words(query)))]
    if equal:
        assert match is not None and match[2] and query_key(match[0]) == query_key(query)
    elif near:
        assert match is not None and not match[2] and match[0] in near
    else:
        assert match is None


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_close_is_a_jaccard_of_at_least_85_percent(one: set[int], other: set[int]) -> None:
    expected = bool(one | other) and 20 * len(one & other) >= 17 * len(one | other)
    assert close({str(i) for i in one}, {str(i) for i in other}) == expected


def test_the_limit_of_closeness() -> None:
    # 17 words shared of 20 is 0.85, the limit; 16 of 19 is 0.842.
    evaluation = " ".join(f"w{i}" for i in range(20))
    guard = Guard({evaluation: "set"})
    assert guard.match(" ".join(f"w{i}" for i in range(17))) == (evaluation, "set", False)
    assert guard.match(" ".join(f"w{i}" for i in range(3, 20))) == (evaluation, "set", False)
    assert guard.match(" ".join(f"w{i}" for i in range(16))) is None
    assert not close({str(i) for i in range(19)}, {str(i) for i in range(16)})


def test_guard_takes_texts_without_letters_as_they_are() -> None:
    guard = Guard({"?!": "set", "…": "set", "Ａcme é": "set"})
    assert guard.match("?!") and not guard.match("!?") and not guard.match("...")
    assert guard.match("acme e\u0301") and not guard.match("acme e")  # other code points, the same letters


def test_guard_is_fast() -> None:
    # The size of real runs. Comparing all pairs would be 250 million comparisons: minutes.
    evaluation = {f"the meaning of word{i} for word{i % 97}": "set" for i in range(3000)}
    guard = Guard(evaluation)
    queries = [f"the meaning of term{i} for word{i % 97}" for i in range(86_000)]
    started = time.process_time()
    assert not any(guard.match(query) for query in queries)
    assert time.process_time() - started < 30


@given(
    st.lists(
        st.builds(Record, phrases, st.lists(phrases, min_size=1, max_size=3).map(tuple), st.just(()), st.just("s")),
        max_size=8,
    )
)
def test_deduplication_is_idempotent_and_loses_no_pair(rows: list[Record]) -> None:
    def identity(record: Record) -> tuple[str, frozenset[str]]:
        return query_key(record.query), frozenset(record.positives)

    once = deduplicate(rows)
    assert deduplicate(once) == once
    assert [identity(r) for r in once] == list(dict.fromkeys(identity(r) for r in rows))


@given(st.builds(Record, phrases, *[st.lists(phrases, min_size=1, max_size=9).map(tuple)] * 2, st.just("s")))
def test_cleaning_is_idempotent_and_keeps_sides_apart(row: Record) -> None:
    counts: Counter[str] = Counter()
    cleaned = clean(row, counts)
    if cleaned is None:
        assert counts == {"record whose only positive is the query": 1}
        return
    assert clean(cleaned, Counter()) == cleaned
    assert not set(cleaned.positives) & {*cleaned.negatives, cleaned.query}
    lost = len(row.positives + row.negatives) - len(cleaned.positives + cleaned.negatives)
    assert counts.total() == lost
