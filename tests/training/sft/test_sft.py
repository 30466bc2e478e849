"""Stage 1 in small: the same gradient however it is computed, runs that survive a kill, and errors that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from searchr3_embed import ReasoningEmbedder
from tests import tiny
from tests.training.short_runs import (
    CONFIGS,
    assert_same,
    common_settings,
    kill_at,
    log_of,
    run_in_two_processes,
    weights,
    write,
    write_sources,
)
from tests.training.toy_set import write_beir
from training.data.records import Record
from training.sft import ablation, training_step
from training.sft import train as sft
from training.sft.batches import Answers, Batch, Collator, lay_out
from training.sft.config import SFTArguments, parse
from training.shared import curves, resume
from training.shared.resume import last_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("data"), 24)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint without dropout, so that one pass and two passes see the same model."""
    folder = tiny.save_mini(tmp_path_factory.mktemp("still"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def settings(model: Path, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        **common_settings(model, data, out),
        "document_lengths": {16: 0.5, 40: 0.5},
        "max_length": 64,
        "tokens_per_forward": 150,
        **changes,
    }


def run(tmp_path: Path, **values: Any) -> Path:
    return sft.train(*parse("", ["--config", str(write(tmp_path, values))]))


def losses_of(out: Path) -> list[dict[str, float]]:
    return [row for row in log_of(out) if "loss" in row]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, still: Path, data: Path) -> Path:
    """An uninterrupted run with two passes and dev measurements."""
    out = tmp_path_factory.mktemp("finished")
    choose = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "ndcg@10_reasoning"}
    run(out, **settings(still, data, out / "run", load_best_model_at_end=False, **choose))
    return out / "run"


def test_the_result_embeds_and_reasons(finished: Path, still: Path) -> None:
    model = ReasoningEmbedder(str(finished / "model"), device="cpu")
    # Training switches it off; plain transformers would generate without a cache.
    assert model.causal_lm.config.use_cache
    assert model.encode_document(["the bank raises interest rates"]).shape == (1, 32)
    assert model.reason(["how do stones travel in ice"])[0].embedding.shape == (32,)
    before, after = weights(still), weights(finished / "model")
    moved = [name for name, value in after.items() if name in before and not torch.equal(value, before[name])]
    assert len(moved) > 10


def test_every_term_is_logged(finished: Path) -> None:
    rows = losses_of(finished)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    names = {f"{term}_{view}" for term in ("contrast", "triplet") for view in ("direct", "target", "own")}
    assert names | {"language", "divergence", "own_tokens", "own_closed"} <= set(rows[0])
    # Before the first update the model is its own base.
    assert rows[0]["divergence"] == pytest.approx(0, abs=1e-5) and rows[-1]["divergence"] > 1e-3
    assert sum("eval_ndcg@10_direct" in row for row in log_of(finished)) == 2


@pytest.mark.parametrize("changes", [{"grad_cache": False}, {"tokens_per_forward": 100_000}])
def test_gradient_of_the_whole_batch_however_it_is_cut(
    changes: dict[str, Any], finished: Path, still: Path, data: Path, tmp_path: Path
) -> None:
    model = run(tmp_path, **settings(still, data, tmp_path / "run", **changes))
    for one, other in zip(losses_of(finished), losses_of(tmp_path / "run"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    # Adam turns rounding of gradients near zero into steps of up to the learning rate, so a few weights may differ.
    first, second = weights(finished / "model"), weights(model)
    far = sum(int((first[name] - second[name]).abs().gt(1e-4).sum()) for name in first)
    assert far < 0.002 * sum(value.numel() for value in first.values())


def test_dropout_is_the_same_in_both_passes(
    mini_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json.loads((mini_checkpoint / "config.json").read_text())["hidden_dropout_prob"] > 0
    seen: list[torch.Tensor] = []
    original = training_step.EmbeddingTrainer._forward

    def record(self, model, turns, language=True):  # type: ignore[no-untyped-def]
        vectors, sums = original(self, model, turns, language)
        seen.append(vectors.detach())
        return vectors, sums

    monkeypatch.setattr(training_step.EmbeddingTrainer, "_forward", record)
    run(tmp_path, **settings(mini_checkpoint, data, tmp_path / "run", max_steps=1))
    half = len(seen) // 2
    assert half > 2
    for first, again in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(first, again)


@pytest.mark.slow
def test_killed_at_any_step_it_ends_with_the_same_weights(mini_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    # With dropout, so that the random state has to survive as well.
    values = settings(mini_checkpoint, data, tmp_path / "whole", max_steps=7, save_steps=2)
    whole = run(tmp_path, **values)
    out = tmp_path / "killed"
    config = write(tmp_path, values | {"output_dir": str(out), "max_steps": 7})
    kill_at(out / "checkpoint-4", "training.sft", config, seconds=120)
    # What a kill in the middle of saving leaves behind.
    (out / "checkpoint-6").mkdir(exist_ok=True)
    (out / "checkpoint-6" / "trainer_state.json").unlink(missing_ok=True)
    (out / "checkpoint-6" / "model.safetensors").write_bytes(b"half of a fi")
    assert_same(whole, run(tmp_path, **values | {"output_dir": str(out)}))


def test_a_finished_run_is_not_trained_again(finished: Path, still: Path, data: Path, tmp_path: Path) -> None:
    before = weights(finished / "model")
    choose = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "ndcg@10_reasoning"}
    run(tmp_path, **settings(still, data, finished, load_best_model_at_end=False, **choose))
    for name, value in weights(finished / "model").items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "problem",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/7: No space left on device"),
    ],
    ids=["python", "safetensors", "torch"],
)
def test_a_full_disk_leaves_the_earlier_checkpoint(
    problem: Exception, still: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = training_step.EmbeddingTrainer._save_optimizer_and_scheduler

    def fail(self, folder):  # type: ignore[no-untyped-def]
        if "checkpoint-4" in str(folder):
            raise problem
        original(self, folder)

    values = settings(still, data, tmp_path / "run", max_steps=6, save_total_limit=1)
    with monkeypatch.context() as patch:
        patch.setattr(training_step.EmbeddingTrainer, "_save_optimizer_and_scheduler", fail)
        with pytest.raises(OSError, match="No space left") as error:
            run(tmp_path, **values)
    assert "earlier ones are whole" in error.value.__notes__[0]
    assert last_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"
    resumed = run(tmp_path, **values)
    assert_same(resumed, run(tmp_path, **values | {"output_dir": str(tmp_path / "other")}))


def test_a_loss_that_is_no_number_stops_the_run(still: Path, data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    model = tiny.save_mini(broken)
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in tensors if name.endswith("encoder.layer.0.output.dense.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FloatingPointError, match="bad-batch-step-0.jsonl"):
        run(tmp_path, **settings(broken, data, tmp_path / "run"))
    saved = (tmp_path / "run" / "bad-batch-step-0.jsonl").read_text().splitlines()
    assert len(saved) == 8 and {"query", "positives"} <= set(json.loads(saved[0]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tempreature": 0.1}, "tempreature"),
        ({"tau": 0}, "tau must be above 0, got 0"),
        ({"sources": None}, "sources must map each source"),
        ({"sources": {"gamma": 1}}, "gamma"),
        ({"distil_weight": 1.0}, "need a teacher"),
        ({"kl_weight": -1.0}, "kl_weight must be at least 0, got -1"),
        ({"negatives": -1}, "negatives must be at least 0, got -1"),
        ({"prompts": {"direct_anwser": "x"}}, r"prompts must map some of \['embed_token'.*got \{'direct_anwser'"),
        ({"document_lengths": [16, 40]}, r"document_lengths must map numbers of tokens .* got \[16, 40\]"),
        ({"own_reasoning": 2}, "own_reasoning must be from 0 to 1, got 2"),
        ({"gradient_accumulation_steps": 2}, "raise per_device_train_batch_size instead"),
        ({"groups_per_step": 3}, "groups_per_step .3. must divide"),
        ({"per_device_train_batch_size": 64}, "No source has 32 records"),
    ],
)
def test_bad_settings_say_what_is_wrong(
    changes: dict[str, Any], message: str, still: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **settings(still, data, tmp_path / "run", **changes))


@pytest.mark.parametrize("term", ["distil_weight", "distil_reasoning_weight", "relation_weight"])
def test_a_teacher_of_another_dimension_can_only_tell_neighbourhoods(
    term: str, still: Path, data: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(still / "tokenizer.json"))
    weights = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 8)).astype(np.float32)
    words = StaticEmbedding(tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[words], device="cpu").save_pretrained(str(tmp_path / "teacher"))
    values = settings(still, data, tmp_path / "run", max_steps=1, teacher=str(tmp_path / "teacher"), **{term: 1.0})
    if term == "relation_weight":
        run(tmp_path, **values)
        return
    with pytest.raises(ValueError, match="has vectors of 8 dimensions and the model of 32"):
        run(tmp_path, **values)


def test_a_refused_command_leaves_nothing_behind(still: Path, data: Path, tmp_path: Path) -> None:
    values = settings(still, data, tmp_path / "run", max_steps=1)
    with pytest.raises(ValueError, match="No source has 32 records"):
        run(tmp_path, **values | {"per_device_train_batch_size": 64})
    run(tmp_path, **values)


@pytest.mark.parametrize("grad_cache", [True, False])
def test_language_alone_can_be_trained(grad_cache: bool, still: Path, data: Path, tmp_path: Path) -> None:
    off = {"contrast_weight": 0.0, "triplet_weight": 0.0, "kl_weight": 0.0, "grad_cache": grad_cache}
    folder = run(tmp_path, **settings(still, data, tmp_path / "run", **off))
    rows = log_of(tmp_path / "run")
    losses = [row["language"] for row in rows if "language" in row]
    assert losses[-1] < losses[0]
    assert folder.is_dir() and not any(name.startswith(("contrast", "triplet")) for row in rows for name in row)


@pytest.mark.parametrize("name", ["single-mini", "single-mini-text"])
def test_the_configs_of_the_packaged_model_train_one_of_its_architecture(
    name: str, still: Path, data: Path, tmp_path: Path
) -> None:
    """The files as they are; only the model, its teacher, the data and the sizes are replaced."""
    teacher = tmp_path / "teacher"
    ReasoningEmbedder(str(still), device="cpu").save_pretrained(str(teacher))
    small = [
        *("--model_name_or_path", str(still), "--teacher", str(teacher)),
        *("--data", str(data), "--sources", '{"alpha": 1, "beta": 1}', "--document_lengths", '{"16": 1}'),
        *("--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--per_device_train_batch_size", "8"),
        *("--max_length", "64", "--bf16", "false", "--eval_strategy", "no", "--logging_steps", "1"),
        *("--learning_rate", "3e-3", "--warmup_steps", "0", "--disable_tqdm", "true"),
    ]
    args, model_args = parse("", ["--config", str(CONFIGS / f"{name}.yaml"), *small])
    folder = sft.train(args, model_args)
    rows = log_of(tmp_path / "run")
    terms = {"language", "contrast_direct", "triplet_own", "contrast_target", "distil", "relation", "distil_own"}
    assert terms <= set(rows[0])
    assert rows[0]["distil"] < 1e-4, "it begins where its teacher is"
    # What is exported lies between the start and the last checkpoint, where the config says so.
    before, after, last = weights(still), weights(folder), weights(last_checkpoint(tmp_path / "run") or folder)
    row = "bert.encoder.layer.0.output.dense.weight"
    share = args.average_with_start
    expected = share * before[row] + (1 - share) * last[row]
    assert share == {"single-mini": 0.0, "single-mini-text": 0.5}[name]
    torch.testing.assert_close(after[row].float(), expected, atol=5e-4, rtol=0)
    assert (last[row] - before[row]).abs().max() > 3e-3


def test_a_base_without_chat_template_is_refused(still: Path, data: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    model = tiny.save_mini(bare)
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        run(tmp_path, **settings(bare, data, tmp_path / "run"))


def test_a_run_of_another_base_or_other_data_is_not_continued(
    mini_checkpoint: Path, finished: Path, still: Path, data: Path, tmp_path: Path
) -> None:
    other = tiny.save_qwen2(tmp_path / "qwen2")
    with pytest.raises(ValueError, match=r"other settings \(.*base: '"):
        run(tmp_path, **settings(other, data, finished))
    with pytest.raises(ValueError, match="tau: 0.05 then, 0.1 now"):
        run(tmp_path, **settings(still, data, finished, tau=0.1))


def test_the_command_line_reports_errors_in_one_line(
    still: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, settings(still, tmp_path / "nowhere", tmp_path / "run"))
    assert sft.main(["--config", str(config)]) == 2
    assert "nowhere" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["single-qwen2.5-1.5b", "single-qwen2.5-7b"])
def test_qwen_configs_train_a_model_of_the_same_architecture(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files as they are; only the model, the data and the sizes are replaced."""
    base = plain_qwen2(tmp_path / "base", tied="1.5b" in name)
    small = [
        *("--model_name_or_path", str(base), "--data", str(data), "--sources", '{"alpha": 1, "beta": 1}'),
        *("--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--per_device_train_batch_size", "8"),
        *("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--eval_strategy", "no"),
        *("--load_best_model_at_end", "false", "--dtype", "float32", "--attn_implementation", "sdpa"),
    ]
    args, model_args = parse("", ["--config", str(CONFIGS / f"{name}.yaml"), *small])
    folder = sft.train(args, model_args)
    model = ReasoningEmbedder(str(folder), device="cpu")
    assert model.encode_query(["a csv file"]).shape == (1, 32)
    before, after = weights(base), weights(folder)
    embed_id = model.tokenizer.convert_tokens_to_ids(tiny.EMBED_TOKEN)
    rows = "model.embed_tokens.weight"
    # Adapters are merged; of the vocabulary only the embed token has moved.
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    torch.testing.assert_close(before[rows][:embed_id], after[rows][:embed_id].float(), atol=1e-2, rtol=1e-2)


def plain_qwen2(folder: Path, tied: bool) -> Path:
    """An instruction-tuned model as it comes from its makers: no embed token, spare rows in the vocabulary."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    source = tiny.save_qwen2(folder.with_name("with_token"))
    tokenizer = AutoTokenizer.from_pretrained(source)
    text = (source / "tokenizer.json").read_text()
    parsed = json.loads(text)
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] != tiny.EMBED_TOKEN]
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(parsed))
    settings_file = folder / "tokenizer_config.json"
    kept = json.loads(settings_file.read_text())
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(kept.get(key), list):
            kept[key] = [token for token in kept[key] if token != tiny.EMBED_TOKEN]
    settings_file.write_text(json.dumps(kept))
    assert tiny.EMBED_TOKEN not in AutoTokenizer.from_pretrained(folder).get_vocab()
    config = Qwen2Config.from_pretrained(source)
    config.tie_word_embeddings = tied
    config.vocab_size += 20
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(still: Path, data: Path, tmp_path: Path) -> None:
    one = settings(still, data, tmp_path / "one", max_steps=2, document_lengths={40: 1}, negatives=0)
    alone = run(tmp_path, **one)
    config = write(tmp_path, one | {"output_dir": str(tmp_path / "two"), "per_device_train_batch_size": 4})
    run_in_two_processes("training.sft", config, seconds=300)
    for single, shared in zip(losses_of(tmp_path / "one"), losses_of(tmp_path / "two"), strict=True):
        assert single["grad_norm"] == pytest.approx(shared["grad_norm"], rel=1e-3)
    first, second = weights(alone), weights(tmp_path / "two" / "model")
    far = sum(int((first[name] - second[name]).abs().gt(1e-4).sum()) for name in first)
    assert far < 0.002 * sum(value.numel() for value in first.values())


def test_batches_say_which_documents_answer_whom(still: Path) -> None:
    model = ReasoningEmbedder(str(still), device="cpu")
    rows = [
        Record("q0", ("d0", "shared"), ("n0",), "s", "a csv file"),
        Record("q1", ("shared",), ("d0",), "s", None),
    ]
    collator = Collator(rows, model.conversation, 16, {16: 1.0}, negatives=1, seed=0)
    batch: Batch = collator([{"position": 0, "row": 0}, {"position": 1, "row": 1}])["batch"]
    assert batch == collator([{"position": 0, "row": 0}, {"position": 1, "row": 1}])["batch"]
    assert len(batch.documents) == 4 and batch.documents[1] == "shared" and batch.reasonings[1] is None
    answers = Answers.of(batch)
    expected = [[text in row.positives for text in batch.documents] for row in rows]
    assert answers.excluded(answers.documents).tolist() == expected
    turns, views, documents = lay_out(batch, model.conversation, {0: [5, 6]})
    assert [(view.name, view.queries) for view in views] == [("direct", [0, 1]), ("target", [0]), ("own", [0])]
    assert all(turn.ids[-1] == model.conversation.embed_token_id for turn in turns)
    assert [turn.taught for turn in turns] == [True, True, False, False, False, False, True, False]
    assert documents == slice(2, 6)
    assert turns[0].ids == model.conversation.direct_ids(["q0"])[0]


def test_the_ablation_leaves_out_one_part_at_a_time(
    still: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two rows tell as much as eight about the machinery; that each change is a setting is checked for all.
    for changes in ablation.CHANGES.values():
        assert set(changes) <= set(SFTArguments.__dataclass_fields__)
    rows = ("all", "without L_InfoNCE")
    # The last one sets what the configuration has already.
    monkeypatch.setattr(ablation, "CHANGES", {row: ablation.CHANGES[row] for row in (*rows, "with L_KL")})
    config = write(tmp_path, settings(still, data, tmp_path / "unused", kl_weight=0.1))
    toy = write_beir(tmp_path / "toy")
    scores = ablation.run(config, data, [toy], tmp_path / "out", 2, ["--save_steps", "1"])
    assert set(scores) == {"start", *rows} and set(scores["all"]["direct"]) == {"toy", "mean"}
    table = (tmp_path / "out" / "ablation.md").read_text()
    assert "| without L_InfoNCE | 0." in table and table.count("\n|") == 5
    logged = {row: losses_of(tmp_path / "out" / ablation.folder_name(row))[0] for row in rows}
    assert "contrast_direct" in logged["all"] and "contrast_direct" not in logged["without L_InfoNCE"]
    assert logged["all"]["triplet_direct"] == pytest.approx(logged["without L_InfoNCE"]["triplet_direct"], rel=1e-5)


def test_curves_show_what_was_logged(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = curves.series(curves.read_log(finished))
    assert {"loss", "contrast_direct", "eval_ndcg@10_direct"} <= set(lines) and "learning_rate" not in lines
    assert lines["loss"] == ([1, 2, 3, 4], [row["loss"] for row in losses_of(finished)])
    # A run that is still going has no metrics.jsonl, and its newest checkpoint tells as much.
    going = tmp_path / "going"
    (going / "checkpoint-4").mkdir(parents=True)
    state = (finished / "checkpoint-4" / resume.STATE_FILE).read_text()
    (going / "checkpoint-4" / resume.STATE_FILE).write_text(state)
    assert curves.series(curves.read_log(going))["loss"] == lines["loss"]
    assert curves.main([str(finished), "--out", str(tmp_path / "losses.png")]) == 0
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert curves.main([str(finished), "--out", str(tmp_path / "one.png"), "--only", "loss"]) == 0
    assert 0 < (tmp_path / "one.png").stat().st_size < (tmp_path / "losses.png").stat().st_size
    assert curves.main([str(finished), "--out", str(tmp_path / "x.png"), "--only", "loss", "lots"]) == 2
    assert "lots: not logged more than once; there are" in capsys.readouterr().err
    assert curves.main([str(tmp_path), "--out", str(tmp_path / "none.png")]) == 2
    assert "neither metrics.jsonl nor a checkpoint" in capsys.readouterr().err
