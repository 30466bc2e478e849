"""Reasoning targets: terms that can be guessed, and text of a language model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from searchr3_embed.adapt import chat_client
from tests.training.prepare.chat_server import Reply, chat_server
from training.data.records import Record, read_records, write_records
from training.prepare import reasoning_targets as rs
from training.prepare.chat_command import BUDGET_SPENT

PACKAGED = str(Path(__file__).parents[3] / "src" / "searchr3_embed" / "weights" / "searchr3-mini")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in chat_client.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def topics(per_topic: int = 6) -> list[Record]:
    """Two topics whose answers share words that the questions lack, beside a word of each answer's own."""
    words = {"glacier": "ice carves valley moraine", "violin": "bow strings wood resin"}
    return [
        Record(f"question {i} about the {topic}", (f"The {topic} {words[topic]} unique{topic}{'x' * i}.",), (), "toy")
        for i in range(per_topic)
        for topic in words
    ]


def clusters(records: list[Record], hint: str = "glacier") -> np.ndarray:
    """Unit vectors that tell the two topics apart."""
    return np.array([[1, 0] if hint in record.query else [0, 1] for record in records], dtype=np.float32)


@pytest.mark.parametrize("given", [True, False], ids=["vectors", "words"])
def test_terms_are_what_the_answers_of_similar_questions_share_and_the_question_lacks(given: bool) -> None:
    records = topics()
    chosen = rs.predictable_terms(records, clusters(records) if given else None)
    assert [sorted(terms) for terms in chosen] == [
        ["carves", "ice", "moraine", "valley"] if "glacier" in record.query else ["bow", "resin", "strings", "wood"]
        for record in records
    ]


def test_vectors_decide_who_votes() -> None:
    """Of the two nearest records at most one is of the same topic, so nobody gets the two votes that a term needs."""
    records = topics(3)
    glaciers, violins = records[::2], records[1::2]
    mixed = [glaciers[0], *violins[:2], violins[2], *glaciers[1:]]
    vectors = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)
    assert rs.predictable_terms(mixed, vectors, neighbours=2) == [[]] * 6
    assert all(rs.predictable_terms(mixed, clusters(mixed), neighbours=2))


def test_a_record_with_the_same_document_does_not_vote() -> None:
    same = [Record(f"question {i} about ice", ("The glacier carves a valley.",), (), "toy") for i in range(6)]
    assert rs.predictable_terms(same) == [[]] * 6
    assert rs.terms_reasoning(same) == [""] * 6


def test_votes_and_number_of_terms_are_bounded() -> None:
    records = topics()
    assert {len(terms) for terms in rs.predictable_terms(records, most_terms=2)} == {2}
    assert rs.predictable_terms(records, least_support=6) == [[]] * len(records)
    assert any(rs.predictable_terms(records, least_support=5))


def test_without_a_vote_the_salient_terms_are_taken_and_the_rarest_comes_first() -> None:
    records = topics(3)
    chosen = rs.predictable_terms(records, least_support=0)
    assert [terms[0] for terms in chosen] == [
        f"unique{r.query.split()[-1]}{'x' * (i // 2)}" for i, r in enumerate(records)
    ]
    assert rs.terms_reasoning(records[:1], least_support=0, most_terms=2) == ["carves ice"]


@pytest.mark.parametrize("support", [0, 2])
@pytest.mark.parametrize(
    "records",
    [
        [],
        [Record("a question", ("an answer with words",), (), "toy")],
        [Record("?", ("!",), (), "toy")] * 5,
        [Record("what is it", (f"the and of {i}",), (), "toy") for i in range(5)],
        [Record("the", (f"glaciers carve valleys {'abcde'[i]}bc",), (), "toy") for i in range(5)],
    ],
    ids=["none", "one", "signs", "stop words", "queries of stop words"],
)
def test_data_without_anything_to_say_gets_nothing_and_no_error(records: list[Record], support: int) -> None:
    chosen = rs.terms_reasoning(records, least_support=support)
    assert len(chosen) == len(records)
    if support:
        assert set(chosen) <= {""}


def test_forms_of_a_word_of_the_question_are_no_terms() -> None:
    records = [
        Record(f"symptom of {name}", (f"Symptoms and symptomatic fever of {name}.",), (), "toy")
        for name in ("flu", "cold", "measles", "mumps")
    ]
    assert rs.terms_reasoning(records) == ["fever"] * 4


def test_terms_with_an_embedder_of_a_folder() -> None:
    records = topics()
    chosen = rs.terms_reasoning(records, embedder=PACKAGED)
    assert all(text and set(text.split()) & {"ice", "bow"} for text in chosen)


def test_an_embedder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere.* cannot be loaded; accepted are 'teacher'"):
        rs.load_embedder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("ice, glacier\n\n moraine:  debris ", "ice, glacier\nmoraine: debris"),
        ("- core: ice\n* terms\n2. related\n---", "core: ice\nterms\nrelated"),
        ("-40 degrees\n3.5 metres", "-40 degrees\n3.5 metres"),
    ],
)
def test_list_marks_and_blank_lines_are_cleaned_away(text: str, cleaned: str) -> None:
    assert rs.clean_reasoning(text) == cleaned


@pytest.mark.parametrize("text", ["", " \n", "---", "- "])
def test_a_reasoning_without_words_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        rs.clean_reasoning(text)


def test_both_sources_have_one_interface(tmp_path: Path) -> None:
    records = topics(3)
    with chat_server(lambda text, seen: Reply("" if "1" in text else f"about\n\n{text}")) as server:
        endpoint = chat_client.Endpoint(server.base_url, "m", attempts=1)

        def from_llm(records: list[Record]) -> list[str | None]:
            return rs.llm_reasoning(records, endpoint=endpoint, store=tmp_path / "a")

        sources: list[rs.Source] = [rs.terms_reasoning, from_llm]
        for source in sources:
            chosen = source(records)
            assert len(chosen) == len(records) and {type(text) for text in chosen} <= {str, type(None)}
        assert chosen == [None if "1" in r.query else f"about\n{r.query}" for r in records]
    system, user = server.bodies[0]["messages"]
    assert system == {"role": "system", "content": rs.SYSTEM_PROMPT}
    assert user["role"] == "user" and not any("moraine" in str(body) for body in server.bodies)


def run(*words: str | Path) -> int:
    return rs.main([str(word) for word in words])


def data(tmp_path: Path, records: list[Record]) -> Path:
    write_records(tmp_path / "in.jsonl.gz", records)
    return tmp_path / "in.jsonl.gz"


def test_the_terms_command_fills_what_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = topics()
    records[0] = dataclasses.replace(records[0], reasoning="kept", negatives=("no",))
    records.append(Record("quarks", ("Nothing like it.",), (), "toy"))
    source, out = data(tmp_path, records), tmp_path / "new" / "out.jsonl"
    assert run("terms", "--data", source, "--out", out, "--most-terms", "2") == 0
    assert (
        "13 records; 12 got a reasoning, 1 had one already, 0 have none (only their direct turn is trained), 1 an"
        in capsys.readouterr().out
    )
    written = read_records(out)
    assert [dataclasses.replace(r, reasoning=None) for r in written] == [
        dataclasses.replace(r, reasoning=None) for r in records
    ]
    assert written[0].reasoning == "kept" and written[-1].reasoning == ""
    assert len((written[1].reasoning or "").split()) == 2
    assert run("terms", "--data", out, "--out", out, "--overwrite") == 0
    assert "13 got a reasoning, 0 had one" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_the_llm_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = topics(2)
    records[0] = dataclasses.replace(records[0], reasoning="kept")
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Say something.\n")
    out = tmp_path / "out.jsonl"
    command: list[str | Path] = ["llm", "--data", data(tmp_path, records), "--out", out, "--model", "m"]
    command += ["--system-prompt", prompt, "--option", "max_tokens=null", "--option", 'stop=["END"]']
    with chat_server(lambda text, seen: Reply(f"about {text}")) as server:
        command += ["--base-url", server.base_url]
        assert run(*command, "--dry-run") == 0
        assert "3 requests to m" in (shown := capsys.readouterr().out) and "[system]\nSay something.\n[user]" in shown
        assert not server.bodies and {path.name for path in tmp_path.iterdir()} == {"prompt.txt", "in.jsonl.gz"}

        assert run(*command, "--max-requests", "2", "--concurrency", "1") == BUDGET_SPENT
        shown = capsys.readouterr().out
        assert "2 answered now" in shown and "1 left" in shown and "2 got a reasoning, 1 had one already" in shown
        assert [r.reasoning for r in read_records(out)] == [
            "kept", *(f"about {r.query}" for r in records[1:3]), None
        ]  # fmt: skip

        assert run(*command) == 0
        assert "1 answered now, 2 answered earlier" in capsys.readouterr().out
    assert [r.reasoning for r in read_records(out)] == ["kept", *(f"about {r.query}" for r in records[1:])]
    assert server.bodies[0] == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Say something."},
            {"role": "user", "content": records[1].query},
        ],
        "temperature": 0.7,
        "stop": ["END"],
    }


def test_a_refusal_is_one_line_and_leaves_no_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = data(tmp_path, topics(2)), tmp_path / "out.jsonl"
    refusal = Reply(status=401, raw=json.dumps({"error": {"message": "bad key"}}).encode())
    with chat_server(lambda text, seen: refusal) as server:
        assert run("llm", "--data", source, "--out", out, "--base-url", server.base_url, "--model", "m") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and "401 Unauthorized: bad key" in last and "SEARCHR3_LLM_API_KEY" in last
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("terms --data {missing} --out o", "no such file"),
        ("terms --data {data} --out o --most-terms 0", "--most-terms must be at least 1, got 0"),
        ("terms --data {data} --out o --least-support -1", "--least-support must be at least 0, got -1"),
        ("terms --data {data} --out o --embedder {missing}", "accepted are 'teacher', 'none'"),
        ("llm --data {data} --out o --model m --base-url host", "base_url must look like http://localhost:8000/v1"),
        ("llm --data {data} --out o --model m --base-url http://h/v1 --option x", "expected NAME=JSON"),
        ("llm --data {data} --out o --model m --base-url http://h/v1 --option model=1", "are not options"),
        ("llm --data {data} --out o --model m --base-url http://h/v1 --concurrency 0", "at least 1, got 0"),
        ("llm --data {data} --out o --model m --base-url http://h/v1 --system-prompt {missing}", "missing.jsonl"),
    ],
)
def test_bad_input_is_one_line_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"data": data(tmp_path, topics(1)), "missing": tmp_path / "missing.jsonl"}
    assert run(*(word.format(**names) for word in arguments.split())) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "o").exists()


def test_several_files_vote_together_and_keep_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Each file alone is too small for a vote; a pair of similar questions stands in different files.
    rows = [
        {
            "query": f"what heals burn number {i}",
            "positives": [f"apply honey gauze to burn {chr(97 + i)}{chr(97 + i)}{i}"],
        }
        for i in range(8)
    ]
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path, part in zip(files, (rows[::2], rows[1::2]), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    data = ["--data", *map(str, files)]
    assert rs.main(["terms", *data, "--out", str(tmp_path / "together")]) == 0
    for path, part in zip(files, (rows[::2], rows[1::2]), strict=True):
        written = read_records(tmp_path / "together" / path.name)
        assert [record.query for record in written] == [row["query"] for row in part]
        assert all("honey" in (record.reasoning or "") for record in written)
    assert rs.main(["terms", *data, "--out", str(tmp_path / "both.jsonl")]) == 2
    assert "is one file for 2; name a folder" in capsys.readouterr().err
