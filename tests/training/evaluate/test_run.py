"""Whole runs: models side by side, result files, resuming, MTEB, bad input."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchr3_embed import ReasoningEmbedder
from tests import tiny_encoders
from tests.training.toy_set import DOCUMENTS, QRELS, QUERIES, write_beir
from training.data.beir import LOST_DOCUMENT, LOST_QUERY
from training.data.lines import DataError
from training.evaluate import mteb_tasks
from training.evaluate import run as ev
from training.evaluate.cells import Settings
from training.evaluate.measuring import encode_queries
from training.evaluate.metrics import NDCG
from training.evaluate.mteb_models import MtebEncoder, register


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", ""], "expected one of our checkpoints"),
        (["--model", "st:"], "must follow 'st:'"),
        (["--model", "no-such-model"], "cannot be used"),
        (["--model", ":reason:3"], "cannot be used"),
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


def write_bright(folder: Path) -> None:
    """The toy set laid out as BRIGHT is: a data set with two configurations, each with a split per domain."""
    gold: dict[str, list[str]] = {}
    for query, document, grade in QRELS:
        if grade > 0:
            gold.setdefault(query, []).append(document)
    unseen = next(name for name in DOCUMENTS if all(name not in names for names in gold.values()))
    rows = {
        "documents": [{"id": name, "content": f"{title} {text}"} for name, (title, text) in DOCUMENTS.items()],
        "examples": [
            {"id": query, "query": QUERIES[query], "gold_ids": names, "excluded_ids": [unseen]}
            for query, names in gold.items()
        ],
    }
    card = ["---", "configs:"]
    for name, lines in rows.items():
        (folder / name).mkdir(parents=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name / "biology.jsonl").write_text(text, encoding="utf-8")
        card += [f"- config_name: {name}", "  data_files:", "  - split: biology", f"    path: {name}/biology.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]), encoding="utf-8")


@pytest.mark.slow
def test_brights_own_task_on_a_copy_of_its_layout(
    tmp_path: Path, mini_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of benchmarks/README.md, on a small data set of the same type."""
    mteb = pytest.importorskip("mteb")
    write_bright(tmp_path / "bright")
    spec = f"BrightBiologyRetrieval={tmp_path / 'bright'}"
    command = ["--model", f"tiny={mini_checkpoint}", "--mteb", spec, "--out", str(tmp_path / "out"), "--quiet"]
    assert ev.main(command) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["mteb"]
    assert found["tasks"] == {"BrightBiologyRetrieval": {"metric": "ndcg_at_10"}}
    assert set(found["models"]) == {"tiny:direct", "tiny:reason"}
    assert "BrightBiologyRetrieval (ndcg_at_10)" in capsys.readouterr().out
    # The task itself is everybody's and still reads its own data.
    assert mteb.get_task("BrightBiologyRetrieval").metadata.dataset["path"] == "mteb/BRIGHT"
    with pytest.raises(ev.EvaluationError, match="is not a folder"):
        ev.evaluate([f"tiny={mini_checkpoint}:direct"], [], mteb=["BrightBiologyRetrieval=/no/such"])

    # The same model by its name, as mteb loads any other.
    register("searchr3/tiny", mini_checkpoint, license="apache-2.0")
    task = mteb_tasks.find_tasks([spec])[0]
    result = mteb.evaluate(mteb.get_model("searchr3/tiny", device="cpu"), task, co2_tracker=False, cache=None)
    expected = found["models"]["tiny:reason"]["mean"]
    assert float(result.task_results[0].get_score()) == pytest.approx(expected, abs=1e-4)
    assert mteb.get_model_meta("searchr3/tiny").license == "apache-2.0"


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "/tiny", "intfloat/e5-base-v2"])
def test_names_that_mteb_cannot_take(name: str) -> None:
    pytest.importorskip("mteb")
    with pytest.raises(ev.EvaluationError, match=name):
        register(name, "folder")


def test_mteb_sides(mini_checkpoint: Path) -> None:
    pytest.importorskip("mteb")
    from mteb.types import PromptType

    embedder = ReasoningEmbedder(mini_checkpoint, device="cpu")
    batches = [{"text": ["a river"]}, {"text": ["interest rates", "glacier"]}]
    texts = ["a river", "interest rates", "glacier"]
    thinking, direct = MtebEncoder(embedder, max_reasoning_tokens=2), MtebEncoder(embedder, reason=False)
    expected = embedder.encode_query(texts, max_reasoning_tokens=2)
    np.testing.assert_allclose(
        thinking.encode(batches, prompt_type=PromptType.query, hf_split="x"), expected, atol=1e-5
    )
    plain = embedder.encode_document(texts)
    for one in (thinking, direct):
        np.testing.assert_allclose(one.encode(batches, prompt_type=PromptType.document), plain, atol=1e-5)
        np.testing.assert_allclose(one.encode(batches, batch_size=1), embedder.encode(texts), atol=1e-5)
    found = direct.encode(batches, prompt_type=PromptType.query)
    np.testing.assert_allclose(found, embedder.encode_query(texts, reason=False), atol=1e-5)
    assert thinking.mteb_model_meta.embed_dim == embedder.get_embedding_dimension()


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


def test_sets_that_judge_what_they_lack_are_measured(toy: Path, tmp_path: Path, caplog: Any, capsys: Any) -> None:
    with (toy / "qrels.tsv").open("a") as qrels:
        qrels.write("q1\tgone\t1\nPLAIN-2\td2\t1\n")
    assert ev.main(["--model", "bm25", "--data", str(toy), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["left_out"] == {"toy": {LOST_DOCUMENT: 1, LOST_QUERY: 1}}
    assert f"toy: 1 {LOST_DOCUMENT}, 1 {LOST_QUERY}." in capsys.readouterr().out
    assert "qrels.tsv:8: query 'q1', document 'gone'" in caplog.text


def test_broken_lines_are_an_error_or_counted(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (toy / "qrels.tsv").open("a") as qrels:
        qrels.write("q1 d1 1\n")
    command = ["--model", "bm25", "--data", str(toy), "--quiet"]
    assert ev.main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert "qrels.tsv:8: expected query-id" in captured.err
    assert ev.main([*command, "--skip-bad"]) == 0
    assert "toy: 1 bad line." in capsys.readouterr().out


@pytest.fixture(scope="module")
def thinker_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thinker")
    encoder = tiny_encoders.save_bert(folder / "encoder", normalise=False, hidden=32)
    return tiny_encoders.save_with_thinker(folder / "both", encoder, ends=9.0)


def test_a_thinker_is_measured_direct_thinking_and_with_a_budget_of_0(
    toy: Path, tmp_path: Path, thinker_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    read: list[str] = []
    encode = ReasoningEmbedder.encode_document

    def count(self: Any, texts: Any, **options: Any) -> Any:
        read.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(ReasoningEmbedder, "encode_document", count)
    out = tmp_path / "out"
    models = [f"tiny={thinker_checkpoint}", f"tiny={thinker_checkpoint}:reason:0"]
    options = ["--data", str(toy), "--out", str(out), "--quiet"]
    given = [part for model in models for part in ("--model", model)]
    stock = ["--model", f"stock=st:{thinker_checkpoint}"]
    assert ev.main([*given, *stock, *options, "--baseline", "stock"]) == 0
    assert len(read) == len(DOCUMENTS) + 1, "one encoding serves all rows; one text warms up"
    results = json.loads((out / "results.json").read_text())
    rows = results["models"]
    assert list(rows) == ["tiny:direct", "tiny:reason", "tiny:reason:0", "stock"]
    assert rows["tiny:direct"]["sets"]["toy"][NDCG] == rows["stock"]["sets"]["toy"][NDCG]
    thought, nothing = rows["tiny:reason"]["mean"], rows["tiny:reason:0"]["mean"]
    assert thought["reasoning_tokens_per_query"] > 0 == nothing["reasoning_tokens_per_query"]
    compared = results["reasoning_vs_budget"]
    assert list(results["reasoning_vs_direct"]) == ["tiny"] and list(compared) == ["tiny:reason:0"]
    expected = thought[NDCG] - nothing[NDCG]
    assert compared["tiny:reason:0"]["all_queries"]["difference"] == pytest.approx(expected)
    assert "| reasoning minus tiny:reason:0 " in capsys.readouterr().out
    # The cells of the three rows are told apart.
    monkeypatch.setattr(ev, "load_model", lambda *_: pytest.fail("loaded, although everything is stored"))
    again = ev.evaluate([*models, stock[1]], [toy], out=out, baseline="stock", resume=True)
    assert again["models"] == rows


def test_a_thinkers_vectors_have_length_1_where_cosines_are_compared(thinker_checkpoint: Path) -> None:
    model = ReasoningEmbedder(str(thinker_checkpoint), device="cpu")
    queries = list(QUERIES.values())
    for mode, budget in (("direct", None), ("reason", None), ("reason", 0)):
        vectors, _, _ = encode_queries(model, mode, queries, budget, 2, False)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert abs(np.linalg.norm(model.encode_query(queries[0])) - 1) > 0.1


def test_sets_out_of_domain_have_means_of_their_own(
    toy: Path, tmp_path: Path, stand_in: list[str], capsys: Any
) -> None:
    for name in "abc":
        write_beir(tmp_path / "sets" / name)
    (tmp_path / "sets" / "b" / "qrels.tsv").write_text("q1\td6\t1\n")
    command = ["--model", "teacher", "--model", "bm25", "--data", str(tmp_path / "sets"), "--quiet"]
    assert ev.main([*command, "--out", str(tmp_path / "out"), "--out-of-domain", "b", "c"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["parts"] == {"in_domain": ["a"], "out_of_domain": ["b", "c"]}
    for row in results["models"].values():
        assert row["in_domain"][NDCG] == row["sets"]["a"][NDCG]
        assert row["out_of_domain"][NDCG] == pytest.approx((row["sets"]["b"][NDCG] + row["sets"]["c"][NDCG]) / 2)
        assert row["out_of_domain"][NDCG] != row["in_domain"][NDCG]
    printed = capsys.readouterr().out
    assert "Out of domain: b, c." in printed and "mean in domain |" in printed and "mean out of domain |" in printed
    # Without the option the tables are as ever; with all sets there is no other part.
    assert ev.main(command) == 0
    assert "domain" not in capsys.readouterr().out
    assert set(ev.evaluate(["bm25"], [toy], out_of_domain=["toy"])["parts"]) == {"out_of_domain"}
    assert ev.main([*command, "--out-of-domain", "d"]) == 2
    assert "d is not among the sets measured: a, b, c" in capsys.readouterr().err
