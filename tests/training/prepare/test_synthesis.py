"""Synthetic records: what is asked, how answers are read, and what is left out."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from searchr3_embed.adapt import chat_client
from searchr3_embed.adapt.synthesis import Triple, first_object
from tests.training.prepare.chat_server import Reply, chat_server
from training.data.lines import BAD_LINE, DataError
from training.data.overlap import Guard
from training.data.records import Record, read_records
from training.prepare import synthesis as sy
from training.prepare.chat_command import BUDGET_SPENT

PACKAGED = str(Path(__file__).parents[3] / "src" / "searchr3_embed" / "weights" / "searchr3-mini")
GLACIER = "A glacier is a slow river of ice that carves valleys and carries stones to its end moraine."
VIOLIN = "A violin has four strings, is held under the chin, and is played with a bow of horse hair."
BREAD = "Yeast makes the dough rise for an hour or two before the loaf goes into the hot oven."


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in chat_client.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def answer(*triples: tuple[str, list[Any]], **more: Any) -> str:
    return json.dumps({"triples": [{"query": q, "hard_negatives": n, **more} for q, n in triples]})


def test_an_answer_is_read_from_whatever_surrounds_it() -> None:
    text = answer(("how  do\nglaciers move", [" Snow falls. "]), reasoning="- ice\n- gravity")
    expected = [Triple("how do glaciers move", ("Snow falls.",), "ice\ngravity")]
    assert sy.parse_triples(f"Here you are:\n```json\n{text}\n```\nEnjoy {{it}}!") == expected
    assert sy.parse_triples('{"query": "q", "hard_negatives": ["n"]}') == [Triple("q", ("n",), None)]


BROKEN: list[Any] = [
    "text",
    None,
    {"query": "q"},
    {"query": "q", "hard_negatives": []},
    {"query": "q", "hard_negatives": "letters"},
    {"query": "q", "hard_negatives": ["n", ""]},
    {"query": "q", "hard_negatives": ["n", 3]},
    {"query": " ", "hard_negatives": ["n"]},
    {"query": 5, "hard_negatives": ["n"]},
    {"query": "half \ud800", "hard_negatives": ["n"]},
    {"query": "q", "hard_negatives": ["half \udfff"]},
    {"query": "q", "hard_negatives": ["n"], "reasoning": ["no", "text"]},
    {"query": "q", "hard_negatives": ["n"], "reasoning": "--"},
]


@pytest.mark.parametrize("item", BROKEN, ids=repr)
def test_a_broken_triple_is_left_out_and_alone_it_is_an_error(item: Any) -> None:
    good = {"query": "good", "hard_negatives": ["bad"]}
    assert sy.parse_triples(json.dumps({"triples": [item, good]})) == [Triple("good", ("bad",), None)]
    with pytest.raises(ValueError, match="no triple"):
        sy.parse_triples(json.dumps({"triples": [item]}))


@pytest.mark.parametrize(
    "text", ["", "sorry", '{"triples": []}', '{"triples": "none"}', "{}", '{"triples": [{"query":']
)
def test_an_answer_without_triples_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no triple|no JSON object"):
        sy.parse_triples(text)


def test_repeated_queries_evaluation_queries_and_useless_negatives_are_counted() -> None:
    counts: Counter[str] = Counter()
    documents = [GLACIER, VIOLIN, BREAD]
    answers = [
        [Triple("what carves valleys", ("Rain falls.", GLACIER), "ice"), Triple("What carves valleys?", ("x",), None)],
        None,
        [Triple("what makes dough rise", ("y",), None)],
    ]
    guard = Guard({"What makes dough rise?": "toy"})
    records = sy.assemble(documents, answers, "synthetic-toy", guard, counts)
    assert records == [Record("what carves valleys", (GLACIER,), ("Rain falls.",), "synthetic-toy", "ice")]
    assert counts["query close to an earlier one"] == counts["query close to an evaluation query"] == 1
    assert counts["negative equal to a positive"] == 1


def test_the_retrieval_check_leaves_out_what_the_positive_does_not_beat() -> None:
    model = sy.load_embedder(PACKAGED)
    counts: Counter[str] = Counter()
    question = "how many strings does a violin have"
    records = [
        Record(question, (VIOLIN,), (BREAD, question, GLACIER), "s"),
        Record("how many strings has a violin", (BREAD,), (VIOLIN,), "s"),
    ]
    assert sy.beaten(records, model, counts) == [Record(question, (VIOLIN,), (BREAD, GLACIER), "s")]
    assert counts["negative closer than the positive"] == 2
    assert counts["record without a negative that the positive beats"] == 1
    assert sy.beaten([], model, counts) == []


@pytest.mark.parametrize("kind", ["folder", "file", "gzip"])
def test_a_corpus_is_read_without_short_and_repeated_documents(tmp_path: Path, kind: str) -> None:
    rows: list[Any] = [{"_id": "1", "title": "Ice", "text": GLACIER}, {"text": VIOLIN}, BREAD, "too short"]
    rows += [{"title": None, "text": f" {VIOLIN}  "}]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / {"folder": "corpus.jsonl", "file": "texts.jsonl", "gzip": "texts.jsonl.gz"}[kind]
    path.write_bytes(gzip.compress(content) if kind == "gzip" else content)
    counts: Counter[str] = Counter()
    documents = sy.read_corpus(tmp_path if kind == "folder" else path, 5, counts)
    assert documents == [f"Ice {GLACIER}", VIOLIN, BREAD]
    assert counts == {"document too short": 1, "repeated document": 1}


@pytest.mark.parametrize("line", ["{", "5", '{"title": "x"}', '{"text": 5}', '"half \\ud800"', "[" * 100_000])
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps(GLACIER) + "\n" + line + "\n")
    with pytest.raises(
        DataError, match=r"texts.jsonl:2: (expected|not JSON|'text' (must be a string|holds the lone))"
    ):
        sy.read_corpus(path, 1, Counter())
    counts: Counter[str] = Counter()
    assert sy.read_corpus(path, 1, counts, counts) == [GLACIER] and counts == {BAD_LINE: 1}


def test_a_larger_sample_holds_the_smaller_one_in_the_order_of_the_corpus() -> None:
    documents = [f"document {i}" for i in range(50)]
    small, large = sy.sample(documents, 10, 0), sy.sample(documents, 20, 0)
    assert len(small) == 10 and set(small) < set(large) < set(documents)
    assert large == [text for text in documents if text in large]
    assert sy.sample(documents, 10, 1) != small
    assert sy.sample(documents, None, 0) == documents


@pytest.mark.parametrize("reasoning", [True, False])
def test_the_prompt_names_the_numbers_and_the_document_is_cut(reasoning: bool) -> None:
    ((system, user),) = sy.conversations([GLACIER], sy.SYSTEM_PROMPT, 3, 4, reasoning, 5)
    assert user == {"role": "user", "content": "A glacier is a slow"}
    assert "Write 3 different" in system["content"] and "write 4 hard negatives" in system["content"]
    assert ("reasoning" in system["content"]) == reasoning
    # What is asked for is what is read, but not when a model only says it back.
    expected = [Triple("words", ("words", "words"), "words" if reasoning else None)]
    assert sy.parse_triples(system["content"].replace('"..."', '"words"')) == expected
    with pytest.raises(ValueError, match="no triple"):
        sy.parse_triples(system["content"])
    assert "{queries}" not in system["content"] and "{reasoning" not in system["content"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    folder.mkdir()
    rows = [{"_id": str(i), "title": "", "text": text} for i, text in enumerate((GLACIER, VIOLIN, BREAD, "short"))]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "why does dough rise"}) + "\n")
    (folder / "qrels.tsv").write_text("q\t2\t1\n")
    return folder


def write(text: str, seen: int) -> Reply:
    """A model: fenced JSON, an answer that is broken at first, a copied query, a negative that answers."""
    if text == GLACIER:
        triples = [("what carves valleys", [BREAD]), ("how is a moraine made", [VIOLIN, "how is a moraine made"])]
        return Reply(f"```json\n{answer(*triples, reasoning='ice and stones')}\n```")
    if text == VIOLIN:
        return Reply(
            answer(("What carves valleys?", [BREAD]), ("what is a violin bow", [])) if seen else '{"triples": ['
        )
    return Reply(answer(("why does dough rise?", [VIOLIN]), ("how long does bread dough rest", [GLACIER])))


def test_from_a_corpus_to_records(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    command = ["--corpus", corpus, "--out", out, "--model", "m", "--embedder", PACKAGED, "--reasoning"]
    command += ["--exclude", corpus, "--concurrency", "2"]
    with chat_server(write) as server:
        command += ["--base-url", server.base_url]
        assert sy.main([str(word) for word in (*command, "--dry-run")]) == 0
        assert "3 requests to m" in capsys.readouterr().out and not server.bodies
        status = sy.main([str(word) for word in command])
        first = capsys.readouterr()
        assert status == 0, first.err
        assert sy.main([str(word) for word in command]) == 0
        assert server.seen == {GLACIER: 1, VIOLIN: 2, BREAD: 1}
    records = read_records(out)
    assert records == [
        Record("what carves valleys", (GLACIER,), (BREAD,), "synthetic-toy", "ice and stones"),
        Record("how is a moraine made", (GLACIER,), (VIOLIN,), "synthetic-toy", "ice and stones"),
        Record("how long does bread dough rest", (BREAD,), (GLACIER,), "synthetic-toy"),
    ]
    for line in (
        "3 answered now, 0 answered earlier; 4 requests",
        "left out: 1 document too short",
        "left out: 1 triple broken",
        "left out: 1 query close to an earlier one",
        "left out: 1 query close to an evaluation query",
        "left out: 1 negative closer than the positive",
        "3 records with 3 negatives from 3 documents",
    ):
        assert line in first.out, first.out


def test_a_spent_budget_writes_what_there_is(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    command = ["--corpus", str(corpus), "--out", str(out), "--model", "m", "--embedder", "none", "--concurrency", "1"]
    with chat_server(write) as server:
        command += ["--base-url", server.base_url, "--max-requests"]
        assert sy.main([*command, "0"]) == BUDGET_SPENT
        assert not out.exists() and "3 left" in capsys.readouterr().out
        assert sy.main([*command, "1"]) == BUDGET_SPENT
    assert [record.query for record in read_records(out)] == ["what carves valleys", "how is a moraine made"]


def test_nothing_to_write_is_an_error(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    command = ["--corpus", str(corpus), "--out", str(out), "--model", "m", "--embedder", "none", "--attempts", "2"]
    with chat_server(lambda text, seen: Reply("I cannot do that.")) as server:
        assert sy.main([*command, "--base-url", server.base_url]) == 1
    captured = capsys.readouterr()
    assert "3 dropped (no JSON object)" in captured.out and "nothing is left to write" in captured.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--corpus {missing}", "expected a folder with corpus.jsonl"),
        ("--corpus {corpus} --queries 0", "--queries must be at least 1, got 0"),
        ("--corpus {corpus} --least-words 1000", "no document of at least 1000 words"),
        ("--corpus {corpus} --embedder {missing}", "cannot be loaded"),
        ("--corpus {corpus} --exclude {missing}", "not a folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_asked(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    words = arguments.format(corpus=corpus, missing=tmp_path / "missing").split()
    with chat_server(write) as server:
        common = ["--out", str(tmp_path / "o.jsonl"), "--model", "m", "--base-url", server.base_url]
        assert sy.main([*words, *common]) == 2
        assert not server.bodies
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('```json\n{"a": {"b": [1]}}\n```', {"a": {"b": [1]}}),
        ('Sure! Here {it} is: {"a": "x\ny"} and {"b": 2}', {"a": "x\ny"}),
    ],
)
def test_the_first_object_is_found_in_whatever_surrounds_it(text: str, value: dict[str, Any]) -> None:
    assert first_object(text) == value


@pytest.mark.parametrize("text", ["", "none", '{"a": ', '["a"]', '{"a":' * 100_000, "{" * 100_000])
def test_no_object_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        first_object(text)
