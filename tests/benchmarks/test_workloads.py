"""The benchmark suite in miniature: peers agree, disagreement is not timed, results survive a kill; and a guard."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import benchmarks.__main__ as suite
from benchmarks import cells, gpu, memory, peers, profiling, steered, timing, workloads
from benchmarks.setting import Setting, Sizes
from searchr3_embed import ReasoningEmbedder
from searchr3_embed.engine import forward
from searchr3_embed.question_side import Familiar
from tests.training.toy_set import write_beir

SIZES = Sizes(
    queries=4,
    continuous=2,
    single=2,
    documents=5,
    document_sample=3,
    concurrent=3,
    linear_documents=(2, 4),
    linear_queries=(2, 4),
    batch_sizes=(2, 4),
    document_batch_sizes=(2, 4),
)
TINY = gpu.SHAPES["tiny"]
WORDS = "tides violin bread river cold csv glacier interest heart evolution column valleys stones paris".split()
TEXTS = [*WORDS, "which river flows through paris", "what are the symptoms of a common cold in adults"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    write_beir(folder / "scifact")
    return folder


@pytest.fixture
def setting(data: Path, mini_checkpoint: Path, tmp_path: Path) -> Setting:
    return Setting(data, str(mini_checkpoint), tmp_path, SIZES, repeats=1, shape=TINY)


@pytest.fixture(scope="module")
def qwen2(qwen2_checkpoint: Path) -> Iterator[ReasoningEmbedder]:
    yield ReasoningEmbedder(str(qwen2_checkpoint), device="cpu", on_truncate="ignore")


@pytest.mark.slow
def test_all_workloads_are_measured_and_reported(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        workloads, "continuous_batching", lambda *args: (_ for _ in ()).throw(peers.NotAvailableError("not here"))
    )
    names = ["W1", "W2", "W3", "W4a", "W4b", "W5", "W7"]
    result = suite.run(setting, names, tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    found = stored["workloads"]
    assert list(found) == names == list(result["workloads"])
    assert "no set 'perspectrum'" in found["W4b"]["error"]  # the next ones run all the same
    for name in ("W1", "W2", "W3", "W4a", "W5"):
        for cell in found[name]["cells"]:
            if "unavailable" not in cell:
                assert cell["lowest_cosine"] >= 0.9999 and cell["speedup"]["of_medians"] > 0
                assert len(cell["ours"]["all_s"]) == 1
    assert [cell.get("unavailable") for cell in found["W2"]["cells"]] == [None, None, "not here"]
    assert 0 < found["W1"]["profile"]["matrix_share"] < 1
    assert [row["relative"] for row in found["W7"]["linearity"]][::2] == [1.0, 1.0]
    text = (tmp_path / "results.md").read_text()
    assert "## W7" in text and "is not available: not here" in text and "Matrix products take" in text
    assert (tmp_path / "results.png").stat().st_size > 1000


@pytest.mark.parametrize("kind", ["thinker_checkpoint", "language_model_thinker_checkpoint"])
def test_an_encoder_with_a_thinker_meets_the_stock_encoder(
    kind: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = str(request.getfixturevalue(kind))
    setting = Setting(data, model, tmp_path, SIZES, repeats=1, shape=TINY)
    found = suite.run(setting, ["W1", "W2", "W3", "W4a", "W5", "W7"], tmp_path)["workloads"]
    assert not [name for name, workload in found.items() if "error" in workload]
    for name in ("W1", "W2"):
        thinking, cost = found[name]["cells"]
        assert (thinking["peer"], cost["peer"]) == (workloads.PEER_F, workloads.PEER_G)
        assert min(thinking["lowest_cosine"], cost["lowest_cosine"]) >= 0.9999
        assert thinking["differing_rows"] == 0
    assert found["W2"]["reasoning_tokens"]["most"] > 5
    assert [cell["peer"].rpartition(", ")[2] for cell in found["W3"]["cells"]] == [
        "p50 of a query",
        "p95 of a query",
    ] * 2
    assert found["W4a"]["cells"][0]["lowest_cosine"] >= 0.9999
    # In W6 both sides have processes of their own; here, the peer's work alone.
    ids, vectors, _ = memory._run(memory.SIDES[1], setting.folder, TEXTS[:3], 2)
    traces = setting.embedder.reason(TEXTS[:3])
    assert ids == [trace.reasoning_ids for trace in traces]
    np.testing.assert_allclose(vectors, np.stack([trace.embedding for trace in traces]), atol=1e-5)


def test_the_peer_of_a_thinker_ends_as_ours(thinker_checkpoint: Path) -> None:
    """Rows that have nothing to add, that end by themselves, and that use up their budget."""
    embedder = ReasoningEmbedder(str(thinker_checkpoint), device="cpu", on_truncate="ignore")
    stock = SentenceTransformer(str(thinker_checkpoint), device="cpu")
    side = embedder.question_side
    assert side is not None
    texts = [*TEXTS, *(word for text in TEXTS for word in text.split()), *"abcdefghijklmnopqrstuvwxyz"]
    traces = embedder.reason(texts)
    assert {trace.finish_reason for trace in traces} == {"nothing_to_add", "embed_token", "length"}
    # And behind a gate that leaves some alone, moves some by a part, and others in full.
    direct = embedder.encode_query(texts, reason=False, normalize_embeddings=True)
    nearest = (direct @ direct[:3].T).max(axis=1)
    gate = Familiar(torch.from_numpy(direct[:3]), *(float(np.quantile(nearest, share)) for share in (0.3, 0.8)))
    for familiar in (None, gate):
        embedder.question_side = dataclasses.replace(side, familiar=familiar)
        traces = embedder.reason(texts)
        ids, vectors = peers.encode_then_generate(stock, embedder.question_side, texts, 8)
        assert ids == [trace.reasoning_ids for trace in traces]
        np.testing.assert_allclose(vectors, np.stack([trace.embedding for trace in traces]), atol=1e-5)


def test_batch_sizes_are_chosen_on_a_sample_of_many_documents(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    def compare(_: str, ours: cells.Side, others: list[cells.Side], count: int, *args: Any) -> list[dict[str, Any]]:
        seen.append((count, tuple(ours.batch_sizes), tuple(others[0].batch_sizes)))
        return [{"items": count, "ours": {"batch_size": 4}, "theirs": {"batch_size": 2}}]

    monkeypatch.setattr(workloads, "compare", compare)
    assert workloads.documents(setting, "scifact")["cells"][0]["items"] == 5
    assert seen == [(3, (2, 4), (2, 4)), (5, (4,), (2,))]
    monkeypatch.setattr(setting, "sizes", dataclasses.replace(SIZES, document_sample=5))
    workloads.documents(setting, "scifact")
    assert seen[2:] == [(5, (2, 4), (2, 4))]


@pytest.mark.slow
def test_memory_is_that_of_another_process(setting: Setting) -> None:
    ours = memory.measure(memory.SIDES[0], setting.folder, TEXTS[:3], 2, setting.scratch)
    ids, vectors, _ = memory._run(memory.SIDES[1], setting.folder, TEXTS[:3], 2)
    assert ours["ids"] == ids
    timing.agreement(ours["vectors"], vectors, np.ones(3, dtype=bool), "memory")
    assert 50 << 20 < ours["loaded_bytes"] <= ours["peak_bytes"]


def test_a_failed_memory_job_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(memory.ProcessError, match="ours, queries: no-such-python can't be run: "):
        memory.measure("ours, queries", Path("no-such-folder"), TEXTS[:1], 2, tmp_path, "no-such-python")
    # Fails before it has loaded what a model needs, for the failure is all that is looked at here.
    monkeypatch.setattr(torch, "get_num_threads", lambda: "many")
    with pytest.raises(memory.ProcessError, match="(?s)ours, queries: .*RuntimeError: set_num_threads"):
        memory.measure("ours, queries", Path("no-such-folder"), TEXTS[:1], 2, tmp_path)


def test_disagreement_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "time_in_turn", lambda *args: pytest.fail("timed"))
    vectors = np.eye(3, dtype=np.float32)
    ours = cells.Side("ours", lambda size: (None, vectors))
    with pytest.raises(timing.DisagreementError, match="cosine -1.0"):
        cells.compare("toy", ours, [cells.Side("peer", lambda size: (None, -vectors))], 3, 1)
    with pytest.raises(timing.DisagreementError, match="cosine nan"):
        cells.compare("toy", ours, [cells.Side("peer", lambda size: (None, vectors * np.nan))], 3, 1)


def test_each_side_counts_at_its_best_batch_size() -> None:
    vectors = np.eye(3, dtype=np.float32)

    def sleepy(fast: int) -> Callable[[int], Any]:
        return lambda size: time.sleep(0.0 if size == fast else 0.02)

    ours = cells.Side("ours", lambda size: (None, vectors), sleepy(1), (1, 2))
    peer = cells.Side("peer", lambda size: (None, vectors), sleepy(2), (1, 2))
    (cell,) = cells.compare("toy", ours, [peer], 3, 3)
    assert (cell["ours"]["batch_size"], cell["theirs"]["batch_size"]) == (1, 2)


@pytest.mark.parametrize("budget", [None, 20, 3])
def test_generate_with_states_is_the_embedding(tmp_path: Path, budget: int | None) -> None:
    """For rows that end by themselves, in the last step, and by the budget."""
    folder = steered.save(tmp_path, TEXTS, TINY, system_tokens=20)
    embedder = ReasoningEmbedder(str(folder), device="cpu", on_truncate="ignore")
    arguments = (embedder.causal_lm, embedder.conversation, TEXTS, 4, budget)
    ids, vectors = peers.generate_with_states(*arguments)
    traces = embedder.reason(TEXTS, max_reasoning_tokens=budget)
    assert ids == [trace.reasoning_ids for trace in traces] == peers.generate_then_embed(*arguments)[0]
    np.testing.assert_allclose(vectors, np.stack([trace.embedding for trace in traces]), atol=1e-4)
    if budget is None:
        assert len({len(row) for row in ids}) > 3
        assert all(steered.SHORTEST <= len(row) <= steered.LONGEST for row in ids)
        assert {trace.finish_reason for trace in traces} == {"embed_token"}


def test_matrix_products_are_told_from_the_rest() -> None:
    names = ("aten::addmm", "aten::mm", "aten::bmm", "mkldnn::_linear_pointwise", "aten::_scaled_dot_product_x")
    assert all(map(profiling.is_matrix_product, names))
    assert not any(map(profiling.is_matrix_product, ("aten::copy_", "aten::comm", "aten::softmax")))


def test_command_line(data: Path, mini_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--data", str(data), "--out", str(tmp_path / "out"), "--model", str(mini_checkpoint)]
    # The toy set holds fewer queries than even the quick run draws, which is recorded.
    assert suite.main([*common, "--only", "W1", "W4a", "--repeats", "1", "--quick"]) == 1
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "16 queries wanted" in stored["workloads"]["W1"]["error"]
    assert stored["workloads"]["W4a"]["cells"][0]["speedup"]["of_medians"] > 0
    assert "Quick run" in capsys.readouterr().out


def test_a_side_that_fails_is_recorded_and_the_next_workload_runs(setting: Setting, tmp_path: Path) -> None:
    elsewhere = Setting(setting.data, setting.model, tmp_path, setting.sizes, 1, python="no-such-python")
    found = suite.run(elsewhere, ["W6", "W4a"], tmp_path)["workloads"]
    assert "no-such-python" in found["W6"]["error"] and "cells" in found["W4a"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--only", "W1", "W9"], "no workload W9; there are W1, W2"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--documents", "0"], "--documents must be at least 1"),
    ],
)
def test_bad_options(extra: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        suite.main(["--data", "x", "--out", "y", *extra])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_missing_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "not a folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_gpu_script_in_miniature(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(data), "--out", str(tmp_path), "--device", "cpu", "--shape", "tiny", "--repeats", "1"]
    assert gpu.main([*options, "--queries", "4", "--batch-sizes", "2", "4"]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())["workloads"]
    for name in ("W1", "W2"):
        assert len(found[name]["cells"]) == 2
        floor = found[name]["floor"]
        assert floor["tokens"] >= 4 * (steered.SHORTEST + 1) and floor["time_over_floor"] > 1
    assert "tokens/s" in capsys.readouterr().out


def computed(embedder: ReasoningEmbedder, call: Callable[[], Any]) -> tuple[int, int]:
    """Model calls and token places (padding included) that a call computes."""
    sizes: list[int] = []

    def note(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        ids = options["input_ids"] if options.get("input_ids") is not None else args[0]
        sizes.append(ids.numel())

    handle = embedder.causal_lm.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        call()
    finally:
        handle.remove()
    return len(sizes), sum(sizes)


def test_thinking_computes_little_more_than_it_must(qwen2: ReasoningEmbedder) -> None:
    """Regression guard: one pass, no row computed after its end, the shared system prompt once."""
    prompts = qwen2.conversation.reasoning_ids(TEXTS)
    traces = qwen2.reason(TEXTS)
    _, ours = computed(qwen2, lambda: qwen2.encode_query(TEXTS, batch_size=16, show_progress_bar=False))
    _, peer = computed(
        qwen2, lambda: peers.generate_then_embed(qwen2.causal_lm, qwen2.conversation, TEXTS, batch_size=16)
    )
    shared = next(i for i, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)
    must = shared + sum(
        len(prompt) - shared + trace.reasoning_tokens + 1 for prompt, trace in zip(prompts, traces, strict=True)
    )
    assert must <= ours <= 2 * must
    assert ours <= 0.5 * peer


@pytest.mark.timing
def test_one_pass_is_faster_than_two(qwen2: ReasoningEmbedder) -> None:
    """Regression guard: thinking and embedding costs less than thinking and then reading it all again."""
    turns = [
        [*prompt, *trace.reasoning_ids, qwen2.conversation.embed_token_id]
        for prompt, trace in zip(qwen2.conversation.reasoning_ids(TEXTS), qwen2.reason(TEXTS), strict=True)
    ]

    def one() -> None:
        qwen2.encode_query(TEXTS, show_progress_bar=False)

    def two() -> None:
        qwen2.reason(TEXTS)
        forward.embed(qwen2.causal_lm, turns)

    calls = computed(qwen2, one)[0], computed(qwen2, two)[0]
    assert calls[0] < calls[1]
    seconds = timing.time_in_turn({"one": one, "two": two}, 5, "guard")
    assert min(seconds["one"]) <= 1.5 * min(seconds["two"])  # a shared machine's noise
