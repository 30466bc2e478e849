"""Sources: names, files, BEIR folders, datasets; what is dropped and counted, and what is an error."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from tests.training.data.rows import Rows, write_rows, write_set
from training.data.beir import LOST_DOCUMENT, LOST_QUERY
from training.data.lines import BAD_LINE, DataError
from training.data.mixing import mix
from training.data.reading import EMPTY_RECORD, EMPTY_TEXT, load
from training.data.records import Record


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


def test_judgements_of_what_is_not_there_are_counted(beir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (beir / "qrels" / "train.tsv").open("a") as qrels:
        qrels.write("1\tzz\t1\n9\ta\t1\n")
    loaded = load({str(beir): 1}, None)
    assert [record.query for record in loaded.sources[str(beir)]] == ["why do tides rise"]
    assert loaded.dropped[str(beir)] == {LOST_DOCUMENT: 1, LOST_QUERY: 1, EMPTY_TEXT: 1, EMPTY_RECORD: 1}
    assert "train.tsv:6: query '1', document 'zz'" in caplog.text


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
    "reasoning": ('{"query": "q", "positives": ["p"], "reasoning": 1}', "'reasoning' must be a string, found 1"),
    "source": ('{"query": "q", "positives": ["p"], "source": []}', "'source' must hold non-empty text"),
    "surrogate": ('{"query": "\\ud800", "positives": ["p"]}', "'query' holds the lone surrogate U+D800"),
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


def test_bad_lines_are_skipped_and_counted_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = [json.dumps({"query": f"q{i}", "positives": ["p"]}) for i in range(3)]
    bad = [line.encode("utf-8", "surrogateescape") for line, _ in BAD_LINES.values()]
    lines = [good[0].encode(), *bad[:5], good[1].encode(), *bad[5:], good[2].encode()]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    loaded = load({str(path): 1}, None, skip_bad=True)
    assert [record.query for record in loaded.sources[str(path)]] == ["q0", "q1", "q2"]
    assert loaded.dropped[str(path)] == {BAD_LINE: len(BAD_LINES)}
    assert f"{len(BAD_LINES)} bad lines left out, the first: {path}:2: not JSON" in caplog.text


def test_bad_rows_of_a_dataset_are_skipped_and_counted_on_request(tmp_path: Path) -> None:
    rows = [{"query": "q", "answer": ["p"]}, {"query": " ", "answer": ["p"]}]
    write_rows(tmp_path / "set" / "train.jsonl", rows)
    spec = f"hub:{tmp_path / 'set'}"
    with pytest.raises(DataError, match="row 1: 'query' must hold non-empty text"):
        load({spec: 1}, None)
    loaded = load({spec: 1}, None, skip_bad=True)
    assert len(loaded.sources[spec]) == 1 and loaded.dropped[spec] == {BAD_LINE: 1}


def test_a_source_that_looks_like_a_number_keeps_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_rows(tmp_path / "007.jsonl", [{"query": "q", "positives": ["p"]}])
    with caplog.at_level(logging.INFO):
        load({"007": 1}, tmp_path)
    assert caplog.messages[-1].splitlines()[1].split() == ["007", "1", "1"]
