"""The yardstick: reading BEIR folders, ranking, metrics, result files and bad input."""

from __future__ import annotations

import gzip
import json
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data.beir import BeirData, DataError, read_beir
from training.evaluate import report
from training.evaluate import run as ev
from training.evaluate.report import NDCG, RECALL, Settings

DOCUMENTS = {
    "d1": ("Tides", "The moon pulls the oceans, so the water rises twice a day."),
    "d2": ("", "A violin has four strings and is played with a bow."),
    "d3": ("Bread", "Yeast makes the dough rise before it goes into the oven."),
    "d4": ("Volcano", "Molten rock reaches the surface and cools to lava fields."),
    "d5": ("", "The cello is a larger string instrument than the violin."),
    "d6": ("Glacier", "Ice moves slowly downhill and carves valleys."),
}
QUERIES = {
    "q1": "why does the ocean water rise twice a day",
    "q2": "violin strings",
    "q3": "what makes dough rise",
    "q4": "how do glaciers carve valleys",
}
QRELS = [("q1", "d1", 1), ("q2", "d2", 1), ("q2", "d5", 1), ("q3", "d3", 1), ("q4", "d6", 1), ("q4", "d4", 0)]


def write_beir(folder: Path, zipped: bool = True, nested: bool = False) -> Path:
    """Writes the toy set, with the small lists and a dev split."""
    folder.mkdir(parents=True)
    corpus = [{"_id": i, "title": title, "text": text} for i, (title, text) in DOCUMENTS.items()]
    queries = [{"_id": i, "text": text} for i, text in QUERIES.items()]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path = folder / f"{name}.jsonl{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)
    lines = "".join(f"{q}\t{d}\t{s}\n" for q, d, s in QRELS)
    qrels = folder / "qrels" / "test.tsv" if nested else folder / "qrels.tsv"
    qrels.parent.mkdir(exist_ok=True)
    qrels.write_text("query-id\tcorpus-id\tscore\n" + lines)
    (folder / "qrels_dev.tsv").write_text("q3\td3\t1\n")
    (folder / "queries_150.txt").write_text("q3\nq1\n")
    (folder / "docs_small.txt").write_text("d1\nd3\nd4\n")
    return folder


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_beir(tmp_path / "toy")


class WordCounts:
    """Stands in for a SentenceTransformer: hashed word counts, so that equal words attract."""

    similarity_fn_name = "cosine"

    def encode_document(self, texts: list[str], **options: Any) -> np.ndarray:
        vectors = np.zeros((len(texts), 64), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, zlib.crc32(word.strip(".,").encode()) % 64] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    encode_query = encode_document


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Loads word counts instead of a SentenceTransformer; returns the labels loaded so far."""
    loaded: list[str] = []
    load = ev.load_model

    def fake(system: ev.System, settings: Settings, device: str | None) -> Any:
        loaded.append(system.label)
        return WordCounts() if system.kind == "st" else load(system, settings, device)

    monkeypatch.setattr(ev, "load_model", fake)
    return loaded


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


def test_metrics_equal_hand_computed_values() -> None:
    data = BeirData("hand", dict.fromkeys("abcd", ""), {"q": ""}, {"q": {"a": 1, "c": 1, "z": 1}})
    measured = ev.score(data, {"q": {"a": 0.9, "b": 0.8, "c": 0.7}})["q"]
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert measured[NDCG] == pytest.approx((1 + 1 / math.log2(4)) / ideal, abs=1e-6)
    assert measured[RECALL] == pytest.approx(2 / 3, abs=1e-6)
    assert ev.score(data, {"q": {}})["q"] == {NDCG: 0.0, RECALL: 0.0}


def test_ties_break_as_in_trec_eval() -> None:
    documents = {f"d{i:03}": "" for i in range(150)}
    data = BeirData("ties", documents, {"q": "text"}, {"q": {"d149": 1}})
    run = ev.rank(data, [np.ones(150, dtype=np.float32)])
    assert list(run["q"]) == sorted(documents, reverse=True)[: ev.DEPTH]
    assert ev.score(data, run)["q"][NDCG] == pytest.approx(1.0)


def test_query_in_the_corpus_does_not_find_itself() -> None:
    documents = {"1": "Title the same words", "2": "other words"}
    data = BeirData("self", documents, {"1": "the same  words", "2": "a question"}, {"1": {"2": 1}, "2": {"1": 1}})
    run = ev.rank(data, [np.array([0.9, 0.5]), np.array([0.1, 0.8])])
    assert list(run["1"]) == ["2"]
    assert list(run["2"]) == ["2", "1"]  # only the number is the same


def test_bm25_finds_the_obvious_document(toy: Path) -> None:
    data = read_beir(toy)
    rows, *seconds = ev.bm25_rows(list(data.documents.values()), [*data.queries.values()][:3] + ["of the"])
    assert [list(data.documents)[int(row.argmax())] for row in rows[:3]] == ["d1", "d2", "d3"]
    assert not rows[3].any()  # stop words alone match nothing
    assert min(seconds) >= 0


def test_bm25_leaves_out_documents_without_a_common_word(toy: Path) -> None:
    data = read_beir(toy)
    run = ev.rank(data, ev.bm25_rows(list(data.documents.values()), list(data.queries.values()))[0], True)
    assert "d6" not in run["q2"] and set(run["q2"]) == {"d2", "d5"}


def test_one_run_measures_ours_teacher_and_bm25(
    toy: Path, tmp_path: Path, mini_checkpoint: Path, stand_in: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_beir(tmp_path / "sets" / "a")
    write_beir(tmp_path / "sets" / "b")
    out = tmp_path / "out"
    models = ["--model", f"tiny={mini_checkpoint}", "--model", "teacher", "--model", "bm25"]
    assert ev.main([*models, "--data", str(tmp_path / "sets"), "--out", str(out), "--quiet"]) == 0
    assert stand_in == ["tiny:direct", "teacher"]  # one load for both modes and both sets

    results = json.loads((out / "results.json").read_text())
    assert list(results["models"]) == ["tiny:direct", "tiny:reason", "teacher", "bm25"]
    assert results["baseline"] == "teacher"
    assert results["sets"] == {name: {"queries": 4, "documents": 6} for name in "ab"}
    for model in results["models"].values():
        expected = model["mean"][NDCG] / results["models"]["teacher"]["mean"][NDCG]
        assert model["relative_to_baseline"]["mean"] == pytest.approx(expected)
        assert model["mean"]["ms_per_query"] > 0 and model["mean"]["ms_per_document"] > 0
    thought = results["models"]["tiny:reason"]["mean"]
    assert 0 <= thought["embed_token_share"] <= 1 and 0 <= thought["reasoning_tokens_per_query"] <= 12
    assert results["models"]["tiny:direct"]["mean"]["embed_token_share"] is None
    direct_ms = [results["models"][f"tiny:{m}"]["sets"]["a"]["ms_per_document"] for m in ("direct", "reason")]
    assert direct_ms[0] == direct_ms[1]  # one encoding of the documents serves both modes
    comparison = results["reasoning_vs_direct"]["tiny"]
    assert set(comparison["sets"]) == {"a", "b"} and 0 < comparison["all_queries"]["p_value"] <= 1

    printed = capsys.readouterr().out
    assert printed == (out / "results.md").read_text()
    assert "relative to teacher" in printed and "| teacher " in printed and "tiny: reasoning minus direct" in printed
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    per_query = [json.loads(line) for line in (out / "per_query.jsonl").read_text().splitlines()]
    assert len(per_query) == 4 * 2 * 4
    traces = [json.loads(line) for line in (out / "reasoning.jsonl").read_text().splitlines()]
    assert len(traces) == 2 * 4 and {trace["model"] for trace in traces} == {"tiny:reason"}
    assert all(trace["finish_reason"] in ("embed_token", "length") for trace in traces)


def test_runs_repeat(toy: Path, mini_checkpoint: Path) -> None:
    runs = [ev.evaluate([f"tiny={mini_checkpoint}", "bm25"], [toy], settings=Settings(small=True)) for _ in range(2)]
    kept = []
    for run in runs:
        for model in run["models"].values():
            for figures in (model["mean"], *model["sets"].values()):
                figures["ms_per_query"] = figures["ms_per_document"] = 0
        kept.append(run)
    assert kept[0] == kept[1]


def test_one_mode_and_another_baseline(toy: Path, mini_checkpoint: Path) -> None:
    results = ev.evaluate([f"tiny={mini_checkpoint}:reason", "bm25"], [toy], baseline="bm25")
    assert list(results["models"]) == ["tiny:reason", "bm25"]
    assert results["models"]["bm25"]["relative_to_baseline"]["mean"] == 1
    assert results["reasoning_vs_direct"] == {}


def test_resume_skips_what_is_unchanged(toy: Path, tmp_path: Path, stand_in: list[str]) -> None:
    out = tmp_path / "out"
    first = ev.evaluate(["teacher"], [toy], out=out)
    assert stand_in == ["teacher"]
    again = ev.evaluate(["teacher", "bm25"], [toy], out=out, resume=True)
    assert stand_in == ["teacher"] and list(again["models"]) == ["teacher", "bm25"]
    assert again["models"]["teacher"] == first["models"]["teacher"]
    # Other settings, other numbers: nothing stored fits.
    ev.evaluate(["teacher"], [toy], settings=Settings(small=True), out=out, resume=True)
    assert len(stand_in) == 2
    # Without --resume everything is measured.
    ev.evaluate(["teacher"], [toy], settings=Settings(small=True), out=out)
    assert len(stand_in) == 3
    # A set that changed is measured again.
    (toy / "qrels.tsv").write_text("q1\td1\t1\n")
    changed = ev.evaluate(["teacher"], [toy], settings=Settings(), out=out, resume=True)
    assert len(stand_in) == 4 and changed["sets"]["toy"]["queries"] == 1


def test_paired_test() -> None:
    assert report.paired_test([(0.5, 0.5)] * 9) == {"difference": 0.0, "p_value": 1.0}
    better = [(0.6 + i / 100, 0.5) for i in range(20)]
    assert report.paired_test(better)["p_value"] < 0.001
    assert report.paired_test(better) == report.paired_test(better)
    mixed = [(0.5 + (-1) ** i / 10, 0.5) for i in range(20)]
    assert report.paired_test(mixed)["p_value"] > 0.5


def append(path: Path, line: str) -> None:
    content = gzip.decompress(path.read_bytes()) + line.encode("utf-8", "surrogateescape") + b"\n"
    path.write_bytes(gzip.compress(content))


BROKEN = {
    "no corpus": (lambda f: (f / "corpus.jsonl.gz").unlink(), r"no corpus\.jsonl"),
    "no queries": (lambda f: (f / "queries.jsonl.gz").unlink(), r"queries\.jsonl or queries\.jsonl\.gz is missing"),
    "no qrels": (lambda f: (f / "qrels.tsv").unlink(), r"neither qrels/test\.tsv nor qrels\.tsv"),
    "empty qrels": (lambda f: (f / "qrels.tsv").write_text(""), r"qrels\.tsv: holds no judgements"),
    "no positive": (lambda f: (f / "qrels.tsv").write_text("q1\td1\t0\n"), "no query with a relevant document"),
    "not JSON": (lambda f: append(f / "corpus.jsonl.gz", "{"), r"corpus\.jsonl\.gz:7: not JSON"),
    "not an object": (lambda f: append(f / "corpus.jsonl.gz", "[1]"), r"corpus\.jsonl\.gz:7: expected a JSON object"),
    "no text": (lambda f: append(f / "queries.jsonl.gz", '{"_id": "x"}'), r"queries\.jsonl\.gz:5: 'text' must be"),
    "number as id": (
        lambda f: append(f / "queries.jsonl.gz", '{"_id": 5, "text": ""}'),
        r":5: '_id' must be a string",
    ),
    "bad title": (lambda f: append(f / "corpus.jsonl.gz", '{"_id": "x", "text": "", "title": 3}'), ":7: 'title' must"),
    "id twice": (lambda f: append(f / "corpus.jsonl.gz", '{"_id": "d1", "text": ""}'), ":7: id 'd1' appears twice"),
    "surrogate": (lambda f: append(f / "queries.jsonl.gz", '{"_id": "x", "text": "\\ud800"}'), ":5: a lone surrogate"),
    "not UTF-8": (lambda f: append(f / "corpus.jsonl.gz", "\udcff"), r"corpus\.jsonl\.gz:7: not UTF-8"),
    "truncated": (lambda f: (f / "corpus.jsonl.gz").write_bytes(b"\x1f\x8b\x08"), "cannot be read"),
    "no gzip": (lambda f: (f / "corpus.jsonl.gz").write_bytes(b"plain"), "cannot be read"),
    "empty corpus": (lambda f: (f / "corpus.jsonl.gz").write_bytes(gzip.compress(b"")), r"corpus\.jsonl\.gz: empty"),
    "columns": (lambda f: (f / "qrels.tsv").write_text("q1\td1\t1\nq1 d1 1\n"), r"qrels\.tsv:2: expected query-id"),
    "bad score": (lambda f: (f / "qrels.tsv").write_text("q1\td1\t1\nq1\td2\tx\n"), r"qrels\.tsv:2: the score must"),
    "lost query": (lambda f: (f / "qrels.tsv").write_text("zz\td1\t1\n"), r"qrels\.tsv:1: query 'zz' is not in"),
    "lost document": (lambda f: (f / "qrels.tsv").write_text("q1\tzz\t1\n"), r"qrels\.tsv:1: document 'zz' is not in"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_data_is_named(case: str, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, message = BROKEN[case]
    spoil(toy)
    assert ev.main(["--model", "bm25", "--data", str(toy), "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    with pytest.raises(DataError, match=message):
        ev.evaluate(["bm25"], [toy])


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", ""], "expected one of our checkpoints"),
        (["--model", "st:"], "must follow 'st:'"),
        (["--model", "no-such-model"], "cannot be used"),
        (["--model", "st:./no/such/folder"], "cannot be used"),
        (["--model", "bm25", "--model", "bm25"], "given twice: bm25"),
        (["--model", "bm25", "--baseline", "teacher"], "'teacher' is not among the models measured"),
        (["--model", "bm25", "--resume"], "--resume needs --out"),
        (["--model", "bm25", "--split", "train"], "no judgements for split 'train'"),
        (["--model", "bm25", "--batch-size", "0"], "at least 1"),
    ],
)
def test_bad_arguments(options: list[str], message: str, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ev.main([*options, "--data", str(toy), "--quiet"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


def test_budget_out_of_range(toy: Path, mini_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", f"tiny={mini_checkpoint}", "--data", str(toy), "--max-reasoning-tokens", "9999", "--quiet"]
    assert ev.main(options) == 2
    assert "got 9999" in capsys.readouterr().err


def test_bad_folders(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    for folders, message in (
        ([tmp_path / "nowhere"], "not a folder"),
        ([tmp_path / "hollow"], "no corpus.jsonl"),
        ([toy, toy], "set given twice: toy"),
    ):
        with pytest.raises(DataError, match=message):
            ev.evaluate(["bm25"], folders)


def test_damaged_cell_is_named(toy: Path, tmp_path: Path) -> None:
    ev.evaluate(["bm25"], [toy], out=tmp_path / "out")
    (cell,) = (tmp_path / "out" / "cells").glob("*.json")
    cell.write_text("{")
    with pytest.raises(ev.EvaluationError, match="is damaged"):
        ev.evaluate(["bm25"], [toy], out=tmp_path / "out", resume=True)


@pytest.fixture
def mteb_task(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy set as a task of the mteb package, which would download its own."""
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Toy(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Toy",
            dataset={"path": "none/toy", "revision": "1"},
            description="The toy set.",
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, **_: Any) -> None:
            corpus = [{"id": i, "title": title, "text": text} for i, (title, text) in DOCUMENTS.items()]
            queries = [{"id": i, "text": text} for i, text in QUERIES.items()]
            relevant: dict[str, dict[str, int]] = {}
            for query, document, score in QRELS:
                relevant.setdefault(query, {})[document] = score
            rows = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries)}
            self.dataset = {"default": {"test": {**rows, "relevant_docs": relevant, "top_ranked": None}}}
            self.data_loaded = True

    get_tasks = mteb.get_tasks

    def local(tasks: list[str]) -> list[Any]:
        return [Toy()] if tasks == ["Toy"] else get_tasks(tasks=tasks)

    monkeypatch.setattr(mteb, "get_tasks", local)
    return Toy


def test_mteb_tasks_are_measured_with_the_sets(
    toy: Path, tmp_path: Path, mini_checkpoint: Path, mteb_task: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    models = ["--model", f"tiny={mini_checkpoint}", "--model", f"st=st:{mini_checkpoint}", "--model", "bm25"]
    assert ev.main([*models, "--data", str(toy), "--mteb", "Toy", "--out", str(out), "--quiet"]) == 0
    results = json.loads((out / "results.json").read_text())
    mteb = results["mteb"]
    assert mteb["tasks"] == {"Toy": {"metric": "ndcg_at_10"}}
    assert list(mteb["models"]) == ["tiny:direct", "tiny:reason", "st"]  # BM25 embeds nothing
    # mteb and we measure the same thing: the same queries, documents, vectors and metric, in both modes.
    for label, row in mteb["models"].items():
        assert row["mean"] == row["tasks"]["Toy"]
        assert row["mean"] == pytest.approx(results["models"][label]["mean"][NDCG], abs=1e-4)
    assert mteb["models"]["tiny:direct"]["mean"] != mteb["models"]["tiny:reason"]["mean"]
    printed = capsys.readouterr().out
    assert "Toy (ndcg_at_10)" in printed and "| tiny:reason " in printed.partition("| mteb")[2]
    assert len(list((out / "mteb").rglob("Toy.json"))) == 3


def test_mteb_alone_and_resumed(
    tmp_path: Path, mini_checkpoint: Path, mteb_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model = tmp_path / "out", f"tiny={mini_checkpoint}:direct"
    loaded, load = [], ev.load_model
    monkeypatch.setattr(ev, "load_model", lambda *arguments: loaded.append(load(*arguments)) or loaded[-1])
    first = ev.evaluate([model], [], mteb=["Toy"], out=out)
    assert "encode_query" not in vars(loaded[0])  # the model is left as it was
    assert first["models"] == {} and not (out / "results.png").exists()
    assert "Toy" in (out / "results.md").read_text()
    monkeypatch.setattr(ev, "load_model", lambda *_: pytest.fail("loaded, although everything is stored"))
    assert ev.evaluate([model], [], mteb=["Toy"], out=out, resume=True)["mteb"] == first["mteb"]
    with pytest.raises(pytest.fail.Exception):  # other settings, other results
        ev.evaluate([model], [], mteb=["Toy"], out=out, resume=True, settings=Settings(max_reasoning_tokens=1))


def test_mteb_errors(mini_checkpoint: Path, mteb_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = f"tiny={mini_checkpoint}:direct"
    with pytest.raises(ev.EvaluationError, match="'SciFactt' not found. Did you mean: 'SciFact'"):
        ev.evaluate([model], [], mteb=["SciFactt"])
    with pytest.raises(ev.EvaluationError, match="nothing to measure on"):
        ev.evaluate([model], [])

    def offline(self: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(mteb_task, "load_data", offline)
    with pytest.raises(ev.EvaluationError, match="the data of the mteb task Toy cannot be loaded: no network"):
        ev.evaluate([model], [], mteb=["Toy"])


def test_mteb_is_optional(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    assert ev.main(["--model", "teacher", "--mteb", "SciFact", "--quiet"]) == 2
    assert "install it with: pip install mteb" in capsys.readouterr().err
