"""Sets in the BEIR layout: what is read, what is left out and told, and what is an error."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.training.toy_set import DOCUMENTS, QUERIES, write_beir
from training.data.beir import LOST_DOCUMENT, LOST_QUERY, document_text, evaluation_queries, read_beir
from training.data.beir import write_beir as write_set
from training.data.lines import BAD_LINE, DataError

TEXTS = {"1": "in train only", "2": "in train and dev", "3": "in test", "4": "nowhere judged"}


def write_queries(folder: Path) -> Path:
    folder.mkdir()
    rows = [json.dumps({"_id": i, "text": text}) + "\n" for i, text in TEXTS.items()]
    (folder / "queries.jsonl").write_text("".join(rows))
    return folder


@pytest.mark.parametrize("nested", [True, False])
def test_all_but_what_only_a_train_split_judges(tmp_path: Path, nested: bool) -> None:
    folder = write_queries(tmp_path / "set")
    splits = {"train": "1\tx\t1\n2\tx\t1\n", "dev": "query-id\tcorpus-id\tscore\n2\tx\t1\n", "test": "3\tx\t1\n"}
    flat = {"train": "qrels_train.tsv", "dev": "qrels_dev.tsv", "test": "qrels.tsv"}
    for split, lines in splits.items():
        path = folder / ("qrels" if nested else ".") / (f"{split}.tsv" if nested else flat[split])
        path.parent.mkdir(exist_ok=True)
        path.write_text(lines)
    assert evaluation_queries(folder) == [TEXTS["2"], TEXTS["3"], TEXTS["4"]]


def test_all_without_judgements(tmp_path: Path) -> None:
    assert evaluation_queries(write_queries(tmp_path / "set")) == list(TEXTS.values())


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"queries\.jsonl or queries\.jsonl\.gz is missing"):
        evaluation_queries(tmp_path)
    (write_queries(tmp_path / "set") / "queries.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"queries\.jsonl:1: '_id' must hold non-empty text"):
        evaluation_queries(tmp_path / "set")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_beir(tmp_path / "toy")


@pytest.mark.parametrize(("zipped", "nested"), [(True, False), (False, True)])
def test_reads_both_layouts(tmp_path: Path, zipped: bool, nested: bool) -> None:
    data = read_beir(write_beir(tmp_path / "set", zipped, nested))
    assert data.name == "set"
    assert list(data.documents) == list(DOCUMENTS)
    assert data.documents["d1"].startswith("Tides The moon")
    assert data.documents["d2"].startswith("A violin")  # no title, no leading space
    assert data.queries == QUERIES
    assert data.qrels["q4"] == {"d6": 1, "d4": 0}


def test_small_lists_and_splits(toy: Path) -> None:
    small = read_beir(toy, small=True)
    assert list(small.queries) == ["q3", "q1"]  # the order of the list
    assert list(small.documents) == ["d1", "d3", "d4"]
    dev = read_beir(toy, split="dev")
    assert list(dev.queries) == ["q3"] and len(dev.documents) == len(DOCUMENTS)
    with pytest.raises(DataError, match="belong to the test split"):
        read_beir(toy, small=True, split="dev")


def test_query_without_relevant_document_is_left_out(toy: Path) -> None:
    (toy / "qrels.tsv").write_text("q1\td1\t1\nq2\td1\t0\n")
    assert list(read_beir(toy).queries) == ["q1"]


SMALL_LISTS = {
    "missing": ("queries_150.txt", None, "missing; the small run needs"),
    "unknown query": ("queries_150.txt", "q1\nzz\n", r"queries_150\.txt:2: 'zz' has no judgement"),
    "unknown document": ("docs_small.txt", "zz\n", r"docs_small\.txt:1: 'zz' is not in the corpus"),
    "relevant left out": ("docs_small.txt", "d1\n", r"lacks 'd3', which is relevant to query 'q3'"),
}


@pytest.mark.parametrize("case", SMALL_LISTS)
def test_broken_small_list_is_named(case: str, toy: Path) -> None:
    file, content, message = SMALL_LISTS[case]
    (toy / file).unlink()
    if content is not None:
        (toy / file).write_text(content)
    with pytest.raises(DataError, match=message):
        read_beir(toy, small=True)


def append(path: Path, line: str) -> None:
    content = gzip.decompress(path.read_bytes()) + line.encode("utf-8", "surrogateescape") + b"\n"
    path.write_bytes(gzip.compress(content))


BROKEN = {
    "no corpus": (lambda f: (f / "corpus.jsonl.gz").unlink(), r"corpus\.jsonl or corpus\.jsonl\.gz is missing"),
    "no queries": (lambda f: (f / "queries.jsonl.gz").unlink(), r"queries\.jsonl or queries\.jsonl\.gz is missing"),
    "no qrels": (lambda f: (f / "qrels.tsv").unlink(), r"neither qrels/test\.tsv nor qrels\.tsv"),
    "empty qrels": (lambda f: (f / "qrels.tsv").write_text(""), r"qrels\.tsv: holds no judgements"),
    "no positive": (lambda f: (f / "qrels.tsv").write_text("q1\td1\t0\n"), "no query with a relevant document"),
    "not JSON": (lambda f: append(f / "corpus.jsonl.gz", "{"), r"corpus\.jsonl\.gz:7: not JSON"),
    "not an object": (lambda f: append(f / "corpus.jsonl.gz", "[1]"), r"corpus\.jsonl\.gz:7: expected a JSON object"),
    "no text": (lambda f: append(f / "queries.jsonl.gz", '{"_id": "x"}'), r"queries\.jsonl\.gz:5: 'text' must be"),
    **{
        f"{value} as id": (
            lambda f, value=value: append(f / "queries.jsonl.gz", f'{{"_id": {value}, "text": ""}}'),
            r":5: '_id' must hold non-empty text, found ",
        )
        for value in ("null", "true", "1.5", '" "', "[]")
    },
    "bad title": (
        lambda f: append(f / "corpus.jsonl.gz", '{"_id": "x", "text": "", "title": []}'),
        ":7: 'title' must",
    ),
    "id twice": (lambda f: append(f / "corpus.jsonl.gz", '{"_id": "d1", "text": ""}'), ":7: id 'd1' appears twice"),
    "surrogate": (
        lambda f: append(f / "queries.jsonl.gz", '{"_id": "x", "text": "\\ud800"}'),
        ":5: 'text' holds the lone surrogate",
    ),
    "not UTF-8": (lambda f: append(f / "corpus.jsonl.gz", "\udcff"), r"corpus\.jsonl\.gz:7: not UTF-8"),
    "truncated": (lambda f: (f / "corpus.jsonl.gz").write_bytes(b"\x1f\x8b\x08"), "cannot be read"),
    "no gzip": (lambda f: (f / "corpus.jsonl.gz").write_bytes(b"plain"), "cannot be read"),
    "empty corpus": (lambda f: (f / "corpus.jsonl.gz").write_bytes(gzip.compress(b"")), r"corpus\.jsonl\.gz: empty"),
    "columns": (lambda f: (f / "qrels.tsv").write_text("q1\td1\t1\nq1 d1 1\n"), r"qrels\.tsv:2: expected query-id"),
    "bad score": (lambda f: (f / "qrels.tsv").write_text("q1\td1\t1\nq1\td2\tx\n"), r"qrels\.tsv:2: the score must"),
    "all lost": (
        lambda f: (f / "qrels.tsv").write_text("q1\tzz\t1\nzz\td1\t1\n"),
        "no query with a relevant document",
    ),
    "judged twice": (
        lambda f: (f / "qrels.tsv").write_text("q1\td1\t1\nq1\td1\t2\n"),
        r"qrels\.tsv:2: .*judged twice",
    ),
    "null id": (
        lambda f: append(f / "corpus.jsonl.gz", '{"_id": null, "text": "x"}'),
        ":7: '_id' must hold non-empty",
    ),
    "empty id": (
        lambda f: append(f / "corpus.jsonl.gz", '{"_id": " ", "text": "x"}'),
        ":7: '_id' must hold non-empty",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_data_is_named(case: str, toy: Path) -> None:
    spoil, message = BROKEN[case]
    spoil(toy)
    for keep_lost in (False, True):
        with pytest.raises(DataError, match=message):
            read_beir(toy, keep_lost=keep_lost)


def test_judgements_of_what_is_not_there_are_told_and_counted(toy: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (toy / "qrels.tsv").open("a") as qrels:
        qrels.write("q1\tgone\t1\nPLAIN-2\td2\t1\nq4\tgone\t1\n")
    data = read_beir(toy)
    assert data.dangling == {LOST_DOCUMENT: 2, LOST_QUERY: 1}
    assert data.queries == QUERIES and "gone" not in data.qrels["q1"]
    kept = read_beir(toy, keep_lost=True)
    assert kept.qrels["q1"] == {"d1": 1, "gone": 1} and "PLAIN-2" not in kept.qrels
    warnings = [message for message in caplog.messages if "qrels.tsv" in message]
    assert len(warnings) == 2 and "2 judged document that the corpus lacks" in warnings[0]
    assert "the first is" in warnings[0] and "qrels.tsv:8: query 'q1', document 'gone'" in warnings[0]
    assert "left out" in warnings[0] and "as in BEIR and MTEB" in warnings[1]
    # The small lists need not know them either.
    assert read_beir(toy, small=True, keep_lost=True).qrels["q1"] == {"d1": 1, "gone": 1}


def test_a_query_whose_only_relevant_document_is_lost_counts_for_scores_alone(toy: Path) -> None:
    (toy / "qrels.tsv").write_text("q1\td1\t1\nq2\tgone\t1\n")
    assert list(read_beir(toy).queries) == ["q1"]
    assert list(read_beir(toy, keep_lost=True).queries) == ["q1", "q2"]


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "set", zipped=False)
    expected = read_beir(folder)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv", "queries_150.txt"):
        path = folder / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_beir(folder) == expected
    assert list(read_beir(folder, small=True).queries) == ["q3", "q1"]


def test_bad_lines_are_skipped_and_counted_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_beir(tmp_path / "set", zipped=False)
    expected = read_beir(folder)
    for name, lines in {
        "corpus.jsonl": [
            "{",
            '{"_id": null, "text": "x"}',
            '{"_id": true, "text": "x"}',
            '{"_id": "d1", "text": "again"}',
        ],
        "queries.jsonl": ["[1]", '{"_id": "", "text": "x"}'],
        "qrels.tsv": ["q1 d1 1", "q1\td1\tx"],
    }.items():
        with (folder / name).open("a") as file:
            file.write("".join(line + "\n" for line in lines))
    counts: Counter[str] = Counter()
    assert read_beir(folder, skip_bad=counts) == expected
    assert counts == {BAD_LINE: 8}
    assert f"4 bad lines left out, the first: {folder / 'corpus.jsonl'}:7: not JSON" in caplog.text


@pytest.mark.parametrize(
    ("title", "expected"),
    [(None, "Ice moves."), ("", "Ice moves."), ("Glacier", "Glacier Ice moves."), ("Ice", "Ice Ice moves.")],
)
def test_title_and_text_are_joined_whatever_the_one_contains_of_the_other(title: str | None, expected: str) -> None:
    assert document_text("here", {"title": title, "text": "Ice moves."}) == expected


def test_written_is_read(toy: Path, tmp_path: Path) -> None:
    data = read_beir(toy)
    write_set(data, tmp_path / "again" / "toy")
    assert read_beir(tmp_path / "again" / "toy") == data


@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\tscore\n"])
@pytest.mark.parametrize("score", ["1", "1.0"])
def test_ids_that_are_numbers_are_those_of_the_judgements(tmp_path: Path, header: str, score: str) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"_id": 7, "title": 1917, "text": "x"}\n{"_id": "8", "text": "y"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": 3, "text": "why"}\n')
    (tmp_path / "qrels.tsv").write_text(f"{header}3\t7\t{score}\n3\t8\t0\n")
    data = read_beir(tmp_path)
    assert data.documents == {"7": "1917 x", "8": "y"}
    assert data.qrels == {"3": {"7": 1, "8": 0}}


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-32"])
def test_files_with_a_byte_order_mark(tmp_path: Path, mark: str) -> None:
    for name, text in {
        "corpus.jsonl": '{"_id": "d", "text": "é"}\r\n',
        "queries.jsonl": '{"_id": "q", "text": "ü"}',
        "qrels.tsv": "q\td\t1\r\n",
    }.items():
        (tmp_path / name).write_bytes(text.encode(mark))
    data = read_beir(tmp_path)
    assert (data.documents, data.queries, data.qrels) == ({"d": "é"}, {"q": "ü"}, {"q": {"d": 1}})
