"""Stage 2 of a thinker in small: exact rewards over documents that never change, and runs that survive a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from trl import GRPOTrainer

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.adapt import branches
from searchr3_embed.question_side import offsets
from tests import tiny, tiny_encoders
from tests.training.short_runs import CONFIGS, kill_at, log_of, write, write_sources
from tests.training.thinker_runs import Stop, assert_same_thinker, keep_vectors, thinker_settings, thinker_weights
from training.rl import thinker_train
from training.rl import train as rl
from training.rl.config import parse
from training.rl.policy_update import PolicyTrainer
from training.rl.reward import scaled_dcg
from training.rl.rollouts import Task
from training.shared import losses

pytestmark = pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")

FACTOR = "differences.safetensors:bert.encoder.layer.1.output.dense.weight.lora_a"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("data"), 16)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with a thinker that ends some of its rollouts, some of them at once."""
    folder = tmp_path_factory.mktemp("start")
    return tiny_encoders.save_with_thinker(
        folder / "both", tiny_encoders.save_bert(folder / "encoder", hidden=32), ends=9.0
    )


def settings(start: Path, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "num_generations": 4,
        "max_completion_length": 9,
        "temperature": 0.9,
        "beta": 0.02,
        "contrast_weight": 1.0,
        "weight_decay": 0.0,
        "per_device_train_batch_size": 16,
        "projection_learning_rate": 1e-2,
    }
    return {**thinker_settings(start, data, out, **values), **changes}


def run(tmp_path: Path, **values: Any) -> Path:
    return rl.train(*parse("", ["--config", str(write(tmp_path, values))]))


def steps(out: Path) -> list[dict[str, float]]:
    return [row for row in log_of(out) if "reward" in row]


def test_a_run_trains_the_thinker_and_nothing_else(
    start: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    encode = ReasoningEmbedder.encode_document

    def count(self: Any, texts: Any, **kwargs: Any) -> Any:
        read.extend(texts)
        return encode(self, texts, **kwargs)

    monkeypatch.setattr(ReasoningEmbedder, "encode_document", count)
    kept = keep_vectors(monkeypatch, thinker_train)
    choose = {"eval_strategy": "steps", "eval_steps": 2, "held_out_one_in": 4}
    folder = run(tmp_path, **settings(start, data, tmp_path / "run", max_steps=4, **choose))
    rows = steps(tmp_path / "run")
    assert len(rows) == 4
    for row in rows:
        assert row["refreshed"] == row["share_refreshed"] == 0 and "staleness" not in row
        assert row["contrast"] > 0 and row["stay"] > 0 and 0 < row["format_rate"] <= 1
    # The reference for the KL is the thinker as stage 1 left it, its differences included.
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5) and rows[-1]["kl"] > 1e-6
    assert len(read) < 2 * len(set(read)), "no document is embedded twice but for held-out ones"
    measured = [row for row in log_of(tmp_path / "run") if "eval_reward" in row]
    assert len(measured) == 2 and all(0 <= row["eval_ndcg@10_budget_0"] <= 1 for row in measured)

    before, after = load_file(start / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    old, new = thinker_weights(start), thinker_weights(folder)
    assert not torch.equal(old["projection.safetensors:projection"], new["projection.safetensors:projection"])
    # Differences add up: the ranks of both stages.
    assert len(new[FACTOR]) == len(old[FACTOR]) + 4 and torch.equal(new[FACTOR][:3], old[FACTOR])
    assert new[FACTOR.replace("lora_a", "lora_b")][:, 3:].any()
    model = ReasoningEmbedder(str(folder), device="cpu")
    np.testing.assert_allclose(model.encode_query(list(kept)), np.stack(list(kept.values())), atol=1e-5)


def test_rewards_are_those_of_ranking_all_documents(
    start: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    terms: list[tuple[Any, ...]] = []
    original, softmax = GRPOTrainer._calculate_rewards, losses.info_nce

    def rewards(self: Any, inputs: Any, prompts: Any, completions: Any, ids: Any) -> torch.Tensor:
        scores = original(self, inputs, prompts, completions, ids)
        seen.append({"prompts": prompts, "ids": ids, "scores": scores[:, 0].tolist()})
        return scores

    def info_nce(*args: Any) -> torch.Tensor:
        terms.append(args)
        return softmax(*args)

    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", rewards)
    monkeypatch.setattr(losses, "info_nce", info_nce)
    run(tmp_path, **settings(start, data, tmp_path / "run", max_steps=1, per_device_train_batch_size=32))

    embedder = ReasoningEmbedder(str(start), device="cpu")
    side, talk = embedder.question_side, embedder.conversation
    assert side is not None
    task: Task = rl.read_task(parse("", ["--config", str(tmp_path / "config.yaml")])[0])[0]
    documents = embedder.encode_document(task.documents)
    kinds: set[str] = set()
    expected_terms = 0
    for query, ids, score in zip(seen[0]["prompts"], seen[0]["ids"], seen[0]["scores"], strict=True):
        if ids[-1] != talk.embed_token_id:
            assert score == pytest.approx(-0.2)
            kinds.add("unfinished")
            continue
        expected_terms += 1
        kinds.add("words" if len(ids) > 1 else "nothing to add")
        vector = torch.tensor(embedder.encode_query([query], reason=False))
        if len(ids) > 1:
            turn = talk.reasoning_turns(talk.text_ids([query]))
            with torch.no_grad():
                states, _, last = branches.states(
                    side.model, turn, [ids], None, torch.device("cpu"), embedder[0].auto_model
                )
            vector = F.normalize(vector + offsets(states[last], side.projection), dim=-1)
        cosines = documents @ vector[0].numpy()
        ranks = [int((cosines > cosines[row] + 1e-6).sum()) for row in task.positives[query]]
        assert score == pytest.approx(0.1 + scaled_dcg(ranks, cosines[task.positives[query]]), abs=1e-4)
    assert kinds == {"words", "nothing to add", "unfinished"}, "the test needs rollouts of all kinds"

    # The softmax runs over the same documents, for the rollouts that ended.
    moved, everything, gold, excluded, tau = terms[0]
    assert moved.shape == (expected_terms, 32) and tau == 0.05
    np.testing.assert_allclose(np.sort(everything.sum(1)), np.sort(documents.sum(1)), atol=1e-5)
    assert excluded[torch.arange(len(gold)), gold].all() and excluded.sum(1).max() < 3


@pytest.mark.parametrize("kind", ["shared layers", "in full"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    kind: str, start: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {}
    if kind == "in full":
        changes = {"encoder": str(language_model_beside(start, tmp_path)), "use_peft": False}
    values = settings(start, data, tmp_path / "whole", max_steps=4, **changes)
    whole = run(tmp_path, **values)
    out = tmp_path / "stopped"

    def stop(self: Any, model: Any, inputs: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise Stop
        return plain(self, model, inputs)

    plain = PolicyTrainer._compute_loss
    with monkeypatch.context() as patch:
        patch.setattr(PolicyTrainer, "_compute_loss", stop)
        with pytest.raises(Stop):
            run(tmp_path, **values | {"output_dir": str(out)})
    assert (out / "checkpoint-2").is_dir()
    assert_same_thinker(whole, run(tmp_path, **values | {"output_dir": str(out)}))
    rows = [steps(folder) for folder in (tmp_path / "whole", out)]
    for name in ("reward", "contrast", "stay", "kl"):
        assert [row[name] for row in rows[0]] == [row[name] for row in rows[1]], name


def language_model_beside(start: Path, tmp_path: Path) -> Path:
    """The encoder with a language model of its own as the thinker, as stage 1 would leave it."""
    thinker = tiny.save_qwen2(tmp_path / "qwen2")
    embedder = ReasoningEmbedder.from_encoder(str(start.parent / "encoder"), str(thinker), device="cpu")
    folder = tmp_path / "joined"
    embedder.save_pretrained(str(folder), create_model_card=False)
    return folder


def test_the_reference_of_the_kl_has_a_head_of_its_own(
    start: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained in full, head included; what the reference says of the same tokens stays as it was."""
    joined = language_model_beside(start, tmp_path)
    seen: list[float] = []
    plain = PolicyTrainer._get_per_token_logps_and_entropies
    probe: dict[str, Any] = {}

    def note(self: Any, model: Any, ids: Any, mask: Any, kept: int, *args: Any, **kwargs: Any) -> Any:
        found = plain(self, model, ids, mask, kept, *args, **kwargs)
        if model is self.ref_model:
            if not probe:
                probe.update(ids=ids, mask=mask, kept=kept)
            odds, _, _ = plain(self, model, probe["ids"], probe["mask"], probe["kept"])
            seen.append(float(odds.sum()))
        return found

    monkeypatch.setattr(PolicyTrainer, "_get_per_token_logps_and_entropies", note)
    changes = {"encoder": str(joined), "use_peft": False, "learning_rate": 1e-2, "max_steps": 3}
    run(tmp_path, **settings(start, data, tmp_path / "run", **changes))
    assert len(seen) == 3 and seen == [pytest.approx(seen[0], abs=1e-4)] * 3
    assert steps(tmp_path / "run")[0]["kl"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_killed_it_ends_with_the_same_weights(start: Path, data: Path, tmp_path: Path) -> None:
    values = settings(start, data, tmp_path / "whole", max_steps=7)
    whole = run(tmp_path, **values)
    out = tmp_path / "killed"
    config = write(tmp_path, values | {"output_dir": str(out)})
    kill_at(out / "checkpoint-4", "training.rl", config, seconds=240)
    assert_same_thinker(whole, run(tmp_path, **values | {"output_dir": str(out)}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoder": "nowhere"}, "There is no model 'nowhere'"),
        ({"thinker": "anything"}, "has a thinker already; leave out --thinker"),
        ({"use_peft": False}, "is trained by low-rank differences: set use_peft"),
        ({"hold_weight": 1.0}, "hold_weight: for single models only"),
        ({"stay_weight": -1.0}, "stay_weight must be at least 0, got -1"),
        ({"query_length": 90}, "The thinker has 96 positions, but query_length 90 and 9 written tokens"),
    ],
)
def test_bad_settings_say_what_is_wrong_and_leave_nothing_behind(
    changes: dict[str, Any], message: str, start: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, settings(start, data, tmp_path / "run") | changes)
    assert rl.main(["--config", str(config)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and message in said
    assert not (tmp_path / "run").exists()


def test_the_config_of_the_packaged_model_trains_one_of_its_kind(start: Path, data: Path, tmp_path: Path) -> None:
    """The file as it is; only the checkpoint, the data and the sizes are replaced."""
    small = [
        *("--encoder", str(start), "--data", str(data), "--sources", '{"alpha": 1, "beta": 1}'),
        *("--output_dir", str(tmp_path / "run"), "--max_steps", "1", "--per_device_train_batch_size", "16"),
        *("--query_length", "40", "--held_out_one_in", "4", "--eval_steps", "1", "--disable_tqdm", "true"),
    ]
    args, model_args = parse("", ["--config", str(CONFIGS / "mini-rl.yaml"), *small])
    assert (args.num_generations, args.beta, args.contrast_weight, model_args.lora_r) == (8, 0.02, 1.0, 16)
    folder = rl.train(args, model_args)
    assert len(thinker_weights(folder)[FACTOR]) == 3 + 16
    assert any("eval_reward" in row for row in log_of(tmp_path / "run"))
