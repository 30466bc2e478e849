"""Stage 2 in small: the trainer's probabilities are the engine's, and a killed run ends with the same weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.adapt import branches
from searchr3_embed.engine import forward, head
from tests import tiny
from tests.training.sft.test_sft import plain_qwen2
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
from training.data.lines import DataError
from training.data.records import Record
from training.rl import log_probabilities, policy_update
from training.rl import train as rl
from training.rl.config import parse
from training.rl.corpus.environment import Environment
from training.rl.log_probabilities import fused_head_is_right
from training.rl.policy_update import PolicyTrainer
from training.rl.reward import RewardSettings, scaled_dcg
from training.rl.rollouts import Task
from training.shared import losses

pytestmark = pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("data"), 16)


def biased(folder: Path, bias: float) -> Path:
    """The small checkpoint with another bias of the embed token."""
    model = tiny.save_mini(folder)
    token = ReasoningEmbedder(str(model), device="cpu").conversation.embed_token_id
    tensors = load_file(model / "model.safetensors")
    tensors["cls.predictions.bias"][token] = bias
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends some of its rollouts, whatever its random weights."""
    return biased(tmp_path_factory.mktemp("ready"), 4.0)


def settings(model: Path, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        **common_settings(model, data, out),
        "query_length": 16,
        "document_length": 40,
        "num_generations": 4,
        "max_completion_length": 8,
        "temperature": 0.8,
        "beta": 0.02,
        "environment": {"neighbours": 4, "candidates": 8, "budget": 8},
        "gradient_accumulation_steps": 2,
        "weight_decay": 0.0,
        **changes,
    }


def run(tmp_path: Path, **values: Any) -> Path:
    return rl.train(*parse("", ["--config", str(write(tmp_path, values))]))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that seldom ends a rollout by itself."""
    return biased(tmp_path_factory.mktemp("start"), 2.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, start: Path, data: Path) -> Path:
    """An uninterrupted run that is paid for ending with the token, and measured on dev sets."""
    out = tmp_path_factory.mktemp("finished")
    choose = {"eval_strategy": "steps", "eval_steps": 5, "metric_for_best_model": "ndcg@10_reasoning"}
    # The format alone, for it can be learned in ten steps of any queries.
    reward = {"dcg": 0.0, "format": 0.5, "failed": -0.5}
    changes = {"max_steps": 10, "save_steps": 5, "per_device_train_batch_size": 16, "reward": reward, **choose}
    run(out, **settings(start, data, out / "run", load_best_model_at_end=True, **changes))
    return out / "run"


def test_the_policy_learns_what_is_rewarded(finished: Path, start: Path) -> None:
    rows = [row for row in log_of(finished) if "reward" in row]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert np.mean([row["format_rate"] for row in rows[-3:]]) > rows[0]["format_rate"] + 0.2
    assert np.mean([row["reward"] for row in rows[-3:]]) > rows[0]["reward"] + 0.2
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5) and rows[-1]["kl"] > 1e-3
    model = ReasoningEmbedder(str(finished / "model"), device="cpu")
    assert model.reason(["how do stones travel in ice"])[0].embedding.shape == (32,)
    # What ends a rollout is not written into the exported model.
    before = json.loads((start / "generation_config.json").read_text())
    after = json.loads((finished / "model" / "generation_config.json").read_text())
    assert before.get("eos_token_id") == after.get("eos_token_id")
    # It was trained on shorter documents than it reads.
    assert model.max_seq_length == ReasoningEmbedder(str(start), device="cpu").max_seq_length > 60


def test_every_step_is_logged_in_full(finished: Path) -> None:
    rows = log_of(finished)
    steps = [row for row in rows if "reward" in row]
    names = ("reward_std", "frac_reward_zero_std", "failed_groups", "reasoning_tokens", "entropy", "staleness")
    seconds = ("generating", "refreshing", "updating", "encoding", "search", "graph")
    assert max(row["completions/max_length"] for row in steps) == 8 > max(row["reasoning_tokens"] for row in steps)
    for row in steps:
        assert all(np.isfinite(row[name]) for name in (*names, *(f"seconds_{part}" for part in seconds)))
    # The corpus is fresh at the first step; later steps encode at most the budget.
    assert steps[0]["refreshed"] == 0 and all(row["refreshed"] <= 8 for row in steps)
    assert any(row["refreshed"] == 8 and 0 < row["share_refreshed"] < 0.5 for row in steps)
    measured = [row for row in rows if "eval_reward" in row]
    assert [row["step"] for row in measured] == [5, 10]
    assert all(0 <= row["eval_ndcg@10_reasoning"] <= 1 and row["eval_reward"] <= 1.1 for row in measured)


@pytest.mark.parametrize("longest", [1024, 25])  # of a row that rollouts share: the second splits groups
@pytest.mark.parametrize("tokens", [None, 30])
@pytest.mark.parametrize("name", ["mini", "qwen2"])
def test_neither_padding_nor_shared_prompts_change_log_probabilities(
    name: str, tokens: int | None, longest: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left padding moves absolute positions; rollouts of one prompt are read in one row, blind to each other."""
    monkeypatch.setattr(branches, "_LONGEST_TREE", longest)
    model = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(f"{name}_checkpoint"))
    model.eval()
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(10, 300, (length,), generator=generator).tolist() for length in (3, 17, 9)]
    prompts += [prompts[1], prompts[0], prompts[1]]
    answers = [torch.randint(10, 300, (length,), generator=generator).tolist() for length in (6, 1, 4, 3, 1, 6)]
    ids, mask = torch.zeros(6, 23, dtype=torch.long), torch.zeros(6, 23, dtype=torch.long)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, 17 - len(prompt) : 17 + len(answer)] = torch.tensor(prompt + answer)
        mask[row, 17 - len(prompt) : 17 + len(answer)] = 1
    with torch.no_grad():
        together, entropy, closing = log_probabilities.log_probabilities(
            model, head.lm_head(model), ids, mask, 6, 0.8, distinct=False, tokens=tokens
        )
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / 0.8
            odds = logits.log_softmax(-1)
            expected = odds.gather(1, torch.tensor(answer)[:, None]).squeeze(1)
            torch.testing.assert_close(together[row, : len(answer)], expected, atol=1e-4, rtol=1e-4)
            spread = -(odds.exp() * odds).sum(-1)
            torch.testing.assert_close(entropy[row, : len(answer)], spread, atol=1e-4, rtol=1e-4)
            assert not together[row, len(answer) :].any() and not entropy[row, len(answer) :].any()
            alone = forward.embed(model, [prompt + answer])[0]
            torch.testing.assert_close(closing[row], alone, atol=1e-4, rtol=1e-4)
    assert fused_head_is_right(model) == (name == "qwen2")


@pytest.mark.parametrize(
    "name, changes",
    [
        ("ready", {}),
        (
            "qwen2_checkpoint",
            {"max_completion_length": 12, "use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"},
        ),
    ],
)
def test_rollouts_are_worth_what_they_find(
    name: str, changes: dict[str, Any], data: Path, tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of the first step everything is computed again by plain means: probabilities, embeddings, scores."""
    folder = request.getfixturevalue(name)
    seen: list[dict[str, Any]] = []
    original = GRPOTrainer._calculate_rewards

    def rewards(self: Any, inputs: Any, prompts: Any, completions: Any, ids: Any) -> torch.Tensor:
        scores = original(self, inputs, prompts, completions, ids)
        seen.append({"prompts": prompts, "ids": ids, "scores": scores[:, 0].tolist()})
        return scores

    def loss(self: Any, model: Any, inputs: Any) -> torch.Tensor:
        kept = inputs["completion_ids"].size(1)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        own = self._get_per_token_logps_and_entropies(model, ids, mask, kept)[0]
        seen[-1].setdefault("apart", []).append((own.detach() - inputs["sampling_per_token_logps"]).abs().max().item())
        return plain(self, model, inputs)

    plain = PolicyTrainer._compute_loss
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", rewards)
    monkeypatch.setattr(PolicyTrainer, "_compute_loss", loss)
    changes = {"max_completion_length": 24, "per_device_train_batch_size": 16, **changes}
    run(tmp_path, **settings(folder, data, tmp_path / "run", max_steps=2, temperature=0.9, **changes))
    # The same probabilities at both steps: before any update, and with weights that have moved.
    assert len(seen) == 2 and all(difference < 1e-4 for step in seen for difference in step["apart"])

    model = ReasoningEmbedder(str(folder), device="cpu")
    talk = model.conversation
    task = rl.read_task(parse("", ["--config", str(tmp_path / "config.yaml")])[0])[0]
    documents = model.encode_document(task.documents)
    some: dict[bool, set[str]] = {True: set(), False: set()}
    for query, ids, score in zip(seen[0]["prompts"], seen[0]["ids"], seen[0]["scores"], strict=True):
        good = ids[-1] == talk.embed_token_id
        some[good].add(query)
        if not good:
            assert score == pytest.approx(RewardSettings().failed)
            continue
        turn = talk.reasoning_turns(talk.text_ids([query]))[0] + ids
        with torch.no_grad():
            state = model.causal_lm(input_ids=torch.tensor([turn]), output_hidden_states=True).hidden_states[-1][0, -1]
        cosines = documents @ torch.nn.functional.normalize(state, dim=0).numpy()
        ranks = [int((cosines > cosines[row] + 1e-6).sum()) for row in task.positives[query]]
        expected = 0.1 + scaled_dcg(ranks, cosines[task.positives[query]])
        assert score == pytest.approx(expected, abs=1e-4)
    assert min(map(len, some.values())) > 1, "the test needs rollouts of both kinds, of more than one query"


def test_ranking_in_more_documents(ready: Path, data: Path, tmp_path: Path) -> None:
    more = write_beir(tmp_path / "more")
    options = ["--config", str(write(tmp_path, settings(ready, data, tmp_path / "run")))]
    alone = rl.read_task(parse("", options)[0])[0]
    task = rl.read_task(parse("", [*options, "--corpus", str(more)])[0])[0]
    assert task.positives == alone.positives and len(task.documents) > len(alone.documents)


def test_a_task_joins_records_of_one_query() -> None:
    rows = [Record("q", ("a", "b"), ("n",), "s"), Record("q", ("b", "c"), ("a",), "s"), Record("r", ("n",), (), "s")]
    task = Task.of(rows, ["a ", "more"])
    assert task.documents == ["a", "b", "n", "c", "more"]
    assert task.positives == {"q": [0, 1, 3], "r": [2]}
    with pytest.raises(DataError, match="query 'q' of source 's' has no positives"):
        Task.of([Record("q", (), ("n",), "s")])


def test_groups_in_which_every_rollout_fails_teach_nothing(data: Path, tmp_path: Path) -> None:
    mute = biased(tmp_path / "mute", -1e4)
    before = weights(mute)
    out = run(tmp_path, **settings(mute, data, tmp_path / "run", beta=0.0, max_steps=2))
    rows = [row for row in log_of(tmp_path / "run") if "reward" in row]
    assert [(row["format_rate"], row["failed_groups"], row["frac_reward_zero_std"]) for row in rows] == [(0, 1, 1)] * 2
    assert rows[0]["reward"] == pytest.approx(-0.2)
    for name, value in weights(out).items():
        assert torch.equal(value, before[name]), name


def calls_of(monkeypatch: pytest.MonkeyPatch, loss: str) -> list[tuple[Any, ...]]:
    """The arguments of all calls of a loss from now on."""
    seen: list[tuple[Any, ...]] = []
    plain = getattr(losses, loss)

    def record(*args: Any) -> torch.Tensor:
        seen.append(args)
        return plain(*args)

    monkeypatch.setattr(losses, loss, record)
    return seen


def test_contrast_keeps_embeddings_beside_the_policy(
    ready: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = calls_of(monkeypatch, "info_nce")
    run(tmp_path, **settings(ready, data, tmp_path / "run", contrast_weight=0.5, max_steps=1))
    model = ReasoningEmbedder(str(ready), device="cpu")
    task = rl.read_task(parse("", ["--config", str(tmp_path / "config.yaml")])[0])[0]
    queries, documents, gold, excluded, tau = seen[0]
    asked = len(documents)
    known = torch.tensor(model.encode_document(list(task.positives)))
    # The direct queries come first, each with a document that answers it; the rollouts behind them point at theirs.
    numbers = [int((known - row).abs().sum(dim=1).argmin()) for row in queries[:asked].detach()]
    assert gold[:asked].tolist() == list(range(asked)) and set(gold.tolist()) == set(range(asked)) and tau == 0.05
    for number, row in zip(numbers, documents.detach(), strict=True):
        torch.testing.assert_close(known[number], queries[numbers.index(number)].detach(), atol=1e-4, rtol=1e-4)
        rows = task.positives[list(task.positives)[number]]
        answers = torch.tensor(model.encode_document([task.documents[i] for i in rows]))
        assert (answers - row).abs().sum(dim=1).min() < 1e-3
    assert excluded.shape == (len(queries), asked)
    assert log_of(tmp_path / "run")[0]["contrast"] > 0


def test_rollouts_are_told_from_the_hardest_documents_of_the_corpus(
    ready: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = calls_of(monkeypatch, "memory_loss")
    changes = {"memory_weight": 0.5, "memory_negatives": 3, "environment": {"refresh": "all"}}
    run(tmp_path, **settings(ready, data, tmp_path / "run", max_steps=1, **changes))
    model = ReasoningEmbedder(str(ready), device="cpu")
    task = rl.read_task(parse("", ["--config", str(tmp_path / "config.yaml")])[0])[0]
    documents = torch.tensor(model.encode_document(task.documents))
    closed = 0
    for closing, memory, tau in seen:
        assert memory.shape == (len(closing), 4, 32) and tau == 0.05 and not memory.requires_grad
        for state, rows in zip(torch.nn.functional.normalize(closing.detach(), dim=-1), memory, strict=True):
            if not rows.any():
                continue
            closed += 1
            answer, *others = [int((documents - row).abs().sum(dim=1).argmin()) for row in rows]
            torch.testing.assert_close(documents[[answer, *others]], rows, atol=1e-4, rtol=1e-4)
            (answers,) = [found for found in task.positives.values() if answer in found]
            cosines = (documents @ state).index_fill(0, torch.tensor(answers), -2)
            torch.testing.assert_close(cosines[others], cosines.topk(3).values, atol=1e-4, rtol=1e-4)
    assert closed > 4, "the test needs rollouts that closed"
    assert log_of(tmp_path / "run")[0]["memory"] > 0


def test_finished_rollouts_learn_from_the_teacher_of_their_query(
    ready: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]] = []

    def record(self: PolicyTrainer, closing: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = plain(self, closing, inputs)
        seen.append((closing.detach(), dict(inputs), loss.detach()))
        return loss

    plain = PolicyTrainer._distil_loss
    monkeypatch.setattr(PolicyTrainer, "_distil_loss", record)
    # In the stock class a folder of ours gives the direct embedding.
    model = ReasoningEmbedder(str(ready), device="cpu")
    model.save_pretrained(str(tmp_path / "teacher"))
    changes = {"teacher": str(tmp_path / "teacher"), "distil_weight": 0.5, "max_steps": 2}
    run(tmp_path, **settings(ready, data, tmp_path / "run", **changes))
    queries = list(rl.read_task(parse("", ["--config", str(tmp_path / "config.yaml")])[0])[0].positives)
    # The run reads 16 tokens of a query.
    read = [model.conversation.decode(ids[:16]) for ids in model.conversation.text_ids(queries)]
    teacher = torch.tensor(model.encode_document(read))
    rows = broken_off = 0
    for closing, inputs, loss in seen:
        distances = []
        for state, number, ids, mask in zip(
            closing, inputs["query"], inputs["completion_ids"], inputs["completion_mask"], strict=True
        ):
            if ids[mask.bool()][-1] != model.conversation.embed_token_id:
                broken_off += 1
                continue
            distances.append(1 - torch.nn.functional.cosine_similarity(state, teacher[number], dim=0))
        rows += len(distances)
        torch.testing.assert_close(loss, torch.stack(distances).mean(), atol=1e-4, rtol=1e-3)
    assert rows > 4 and broken_off > 0, "the test needs rollouts that closed, and some that did not"
    assert [row["distil"] for row in log_of(tmp_path / "run") if "distil" in row] == pytest.approx(
        [float(torch.stack([loss for *_, loss in seen[i : i + 2]]).mean()) for i in (0, 2)], abs=1e-3
    )


def test_vectors_of_a_large_corpus_lie_in_a_file(
    ready: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[type] = []
    plain = Environment.step

    def record(self: Environment, *args: Any, **kwargs: Any) -> Any:
        kinds.append(type(self.vectors))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Environment, "step", record)
    values = settings(ready, data, tmp_path / "memory", max_steps=2)
    small = run(tmp_path, **values)
    monkeypatch.setattr(rl, "MAPPED_FROM", 3)
    assert_same(small, run(tmp_path, **values | {"output_dir": str(tmp_path / "file")}))
    assert set(kinds[: len(kinds) // 2]) == {np.ndarray} and set(kinds[len(kinds) // 2 :]) == {np.memmap}


@pytest.mark.parametrize("beta", [0.0, 0.02])
def test_direct_embeddings_are_held_where_stage_1_left_them(
    beta: float, ready: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = calls_of(monkeypatch, "distance")
    run(tmp_path, **settings(ready, data, tmp_path / "run", max_steps=2, hold_weight=1.0, beta=beta))
    model = ReasoningEmbedder(str(ready), device="cpu")
    task = rl.read_task(parse("", ["--config", str(tmp_path / "config.yaml")])[0])[0]
    queries = torch.tensor(model.encode_document(list(task.positives)))
    documents = torch.tensor(model.encode_document(task.documents))
    for vectors, targets in seen:
        assert not targets.requires_grad and vectors.shape == targets.shape
        half = len(targets) // 2
        for query, document in zip(targets[:half], targets[half:], strict=True):
            numbers = [
                int((known - row).abs().sum(dim=1).argmin())
                for known, row in ((queries, query), (documents, document))
            ]
            torch.testing.assert_close(queries[numbers[0]], query, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(documents[numbers[1]], document, atol=1e-4, rtol=1e-4)
            assert numbers[1] in list(task.positives.values())[numbers[0]]
    assert (seen[0][0] - seen[0][1]).abs().max() < 1e-5
    assert (seen[-1][0] - seen[-1][1]).abs().max() > 1e-5
    assert [row["hold"] > 1e-8 for row in log_of(tmp_path / "run") if "hold" in row] == [False, True]


class Stop(Exception):
    """In the place of a kill."""


@pytest.mark.parametrize("changes", [{}, {"num_iterations": 2, "use_peft": True, "lora_target_modules": "all-linear"}])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    changes: dict[str, Any], ready: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = settings(ready, data, tmp_path / "whole", max_steps=6, **changes)
    whole = run(tmp_path, **values)
    out = tmp_path / "stopped"

    def stop(self: Any, model: Any, inputs: Any) -> torch.Tensor:
        if self.state.global_step == 5:
            raise Stop
        return plain(self, model, inputs)

    plain = PolicyTrainer._compute_loss
    with monkeypatch.context() as patch:
        patch.setattr(PolicyTrainer, "_compute_loss", stop)
        with pytest.raises(Stop):
            run(tmp_path, **values | {"output_dir": str(out)})
    assert (out / "checkpoint-4" / "environment" / "environment.json").exists()
    assert_same(whole, run(tmp_path, **values | {"output_dir": str(out)}))
    rows = [[row for row in log_of(folder) if "reward" in row] for folder in (tmp_path / "whole", out)]
    for name in ("reward", "refreshed", "staleness", "best_rank"):
        assert [row.get(name) for row in rows[0]] == [row.get(name) for row in rows[1]], name


@pytest.mark.slow
def test_killed_at_any_step_it_ends_with_the_same_weights(ready: Path, data: Path, tmp_path: Path) -> None:
    values = settings(ready, data, tmp_path / "whole", max_steps=7)
    whole = run(tmp_path, **values)
    out = tmp_path / "killed"
    config = write(tmp_path, values | {"output_dir": str(out)})
    kill_at(out / "checkpoint-4", "training.rl", config, seconds=240)
    # What a kill in the middle of saving leaves behind: the environment is written first, the state file last.
    (out / "checkpoint-6" / "environment").mkdir(exist_ok=True, parents=True)
    (out / "checkpoint-6" / "trainer_state.json").unlink(missing_ok=True)
    assert_same(whole, run(tmp_path, **values | {"output_dir": str(out)}))


@pytest.mark.slow
def test_two_processes_share_one_environment(ready: Path, data: Path, tmp_path: Path) -> None:
    # A reward that the format alone decides, of which the environment's process and TRL have figures of their own.
    changes = {"per_device_train_batch_size": 4, "max_steps": 2, "reward": {"dcg": 0.0, "format": 0.5, "failed": -0.5}}
    values = settings(ready, data, tmp_path / "two", **changes)
    config = write(tmp_path, values)
    run_in_two_processes("training.rl", config, seconds=400)
    rows = [row for row in log_of(tmp_path / "two") if "reward" in row]
    assert len(rows) == 2 and 0 < rows[0]["format_rate"] < 1
    for row in rows:
        assert row["reward"] == pytest.approx(row["format_rate"] - 0.5, abs=1e-6)
        assert row["format_rate"] + row["completions/clipped_ratio"] == pytest.approx(1)
    assert ReasoningEmbedder(str(tmp_path / "two" / "model"), device="cpu").encode(["a glacier"]).shape == (1, 32)


def test_a_full_disk_leaves_the_earlier_checkpoint(
    ready: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Environment.save

    def fail(self: Any, folder: Path) -> None:
        if "checkpoint-4" in str(folder):
            raise OSError(28, "No space left on device")
        original(self, folder)

    monkeypatch.setattr(Environment, "save", fail)
    values = settings(ready, data, tmp_path / "run", save_total_limit=1)
    with pytest.raises(OSError, match="No space left") as error:
        run(tmp_path, **values)
    assert "earlier ones are whole" in error.value.__notes__[0]
    assert [folder.name for folder in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]


def test_another_corpus_data_or_setting_is_not_continued(finished: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((finished.parent / "config.yaml").read_text())
    with pytest.raises(ValueError, match="another corpus"):
        run(tmp_path, **values | {"corpus": [str(write_beir(tmp_path / "more"))]})
    with pytest.raises(ValueError, match="beta: 0.02 then, 0.3 now"):
        run(tmp_path, **values | {"beta": 0.3})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tempreature": 0.1}, "tempreature"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0"),
        ({"hold_weight": -1.0}, "hold_weight must be at least 0, got -1"),
        ({"memory_weight": -1.0}, "memory_weight must be at least 0, got -1"),
        ({"distil_weight": 1.0}, "distil_weight needs a teacher"),
        ({"distil_weight": 1.0, "teacher": "nowhere"}, "embedder 'nowhere' cannot be loaded"),
        ({"average_with_start": 1.5}, "average_with_start must be from 0 to 1, got 1.5"),
        ({"sources": None}, "sources must map each source"),
        ({"sources": {"gamma": 1}}, "gamma"),
        ({"environment": {"budgets": 3}}, r"environment must map some of \['neighbours'.*got \{'budgets': 3\}"),
        ({"environment": {"budget": -3}}, "budget must be an integer >= 0, got -3"),
        ({"reward": {"failed": 0.5}}, "failed must be below"),
        ({"reward": {"dcg": "much"}}, "reward holds a value of the wrong type"),
        ({"top_p": 0.9}, "top_p must keep its default, got 0.9"),
        ({"save_steps": 1, "steps_per_generation": 4}, "save_steps .1. times .* must be a multiple"),
        ({"per_device_train_batch_size": 4096}, "fewer than the 2048 of one step"),
        ({"max_completion_length": 120}, "128 positions, but query_length 16 and max_completion_length 120"),
        ({"use_vllm": True}, "use_vllm can't bar tokens"),
    ],
)
def test_bad_settings_say_what_is_wrong(
    changes: dict[str, Any], message: str, ready: Path, data: Path, tmp_path: Path
) -> None:
    more = {"max_steps": -1} if "per_device_train_batch_size" in changes else {}
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **settings(ready, data, tmp_path / "run", **changes, **more))


def test_a_model_that_never_learned_the_token_is_refused(data: Path, tmp_path: Path) -> None:
    base = plain_qwen2(tmp_path / "base", tied=True)
    (tmp_path / "with_token" / "conversation.json").rename(base / "conversation.json")
    with pytest.raises(ValueError, match="was not trained to embed"):
        run(tmp_path, **settings(base, data, tmp_path / "run"))


def test_the_command_line_reports_errors_in_one_line(
    ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, settings(ready, tmp_path / "nowhere", tmp_path / "run"))
    assert rl.main(["--config", str(config)]) == 2
    assert "nowhere" in capsys.readouterr().err.splitlines()[-1]


def test_a_loss_that_is_no_number_stops_the_run(
    ready: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_update.GRPOTrainer, "_compute_loss", lambda *args: torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError, match="loss of step 0 is nan"):
        run(tmp_path, **settings(ready, data, tmp_path / "run"))


@pytest.mark.parametrize("name", ["single-mini-rl", "single-mini-rl-teacher", "single-qwen2.5-1.5b-rl"])
def test_configs_train_a_model_of_the_same_architecture(
    name: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The files as they are; only the model, the data and the sizes are replaced."""
    base = request.getfixturevalue("qwen2_checkpoint" if "qwen" in name else "ready")
    small = [
        *("--model_name_or_path", str(base), "--data", str(data), "--sources", '{"alpha": 1, "beta": 1}'),
        *("--output_dir", str(tmp_path / "run"), "--max_steps", "1", "--per_device_train_batch_size", "16"),
        *("--gradient_accumulation_steps", "1", "--query_length", "16", "--document_length", "40"),
        *("--max_completion_length", "8", "--use_cpu", "true", "--bf16", "false", "--report_to", "none"),
        *("--eval_strategy", "no", "--load_best_model_at_end", "false", "--dtype", "float32"),
        *("--attn_implementation", "eager", "--disable_tqdm", "true", "--eval_on_start", "false"),
        *("--teacher", str(tmp_path / "teacher")),
    ]
    ReasoningEmbedder(str(base), device="cpu").save_pretrained(str(tmp_path / "teacher"))
    args, model_args = parse("", ["--config", str(CONFIGS / f"{name}.yaml"), *small])
    folder = rl.train(args, model_args)
    assert ReasoningEmbedder(str(folder), device="cpu").encode_query(["a csv file"]).shape == (1, 32)
    assert dataclasses.asdict(args.reward_settings)["dcg"] == 1.0
