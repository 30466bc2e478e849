"""Stage 1 of a thinker in small: the encoder stays as it is, and what was trained is what is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.adapt import branches
from tests import tiny_encoders
from tests.training.short_runs import CONFIGS, kill_at, log_of, write, write_sources
from tests.training.thinker_runs import Stop, assert_same_thinker, keep_vectors, thinker_settings, thinker_weights
from training.data.records import Record
from training.sft import thinker_train
from training.sft import train as sft
from training.sft.config import parse
from training.sft.thinker_step import ThinkerTrainer
from training.shared import losses
from training.shared.questions import Questions

TEXTS = ["the bank raises interest rates", "a glacier is a slow river of ice", "def area(width): return width"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("data"), 24)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoders.save_bert(tmp_path_factory.mktemp("encoders") / "tiny-bert", hidden=32)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.training.sft.test_sft import plain_qwen2

    return plain_qwen2(tmp_path_factory.mktemp("qwen") / "base", tied=True)


def run(tmp_path: Path, **values: Any) -> Path:
    return sft.train(*parse("", ["--config", str(write(tmp_path, values))]))


def steps(out: Path) -> list[dict[str, float]]:
    return [row for row in log_of(out) if "loss" in row]


def changes_of(kind: str, language_model: Path) -> dict[str, Any]:
    if kind == "shared layers":
        return {}
    if kind == "adapters":
        return {"thinker": str(language_model), "lora_target_modules": "all-linear"}
    return {"thinker": str(language_model), "use_peft": False}


@pytest.mark.parametrize("kind", ["shared layers", "adapters", "in full"])
def test_it_learns_and_exports_what_it_learned_beside_an_encoder_that_nobody_touched(
    kind: str, encoder: Path, language_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep_vectors(monkeypatch, thinker_train)
    changes = {"max_steps": 12, "learning_rate": 1e-2, "projection_learning_rate": 1e-2, "projection_warm_up": 1}
    prompts = {"reasoning_system": "Think.", "max_reasoning_tokens": 6} if kind != "shared layers" else None
    values = thinker_settings(encoder, data, tmp_path / "run", **changes, prompts=prompts, save_strategy="no")
    folder = run(tmp_path, **values | changes_of(kind, language_model))
    rows = steps(tmp_path / "run")
    for name in ("contrast", "language"):
        assert np.mean([row[name] for row in rows[-3:]]) < np.mean([row[name] for row in rows[:3]]) - 0.2, name
    assert abs(rows[0]["stay"]) < 1e-6 and rows[-1]["stay"] > 1e-3

    model = ReasoningEmbedder(str(folder), device="cpu")
    found = model.encode_query(list(kept))
    np.testing.assert_allclose(found, np.stack(list(kept.values())), atol=1e-5)
    direct = model.encode_query(list(kept), reason=False)
    assert np.abs(found - direct).max() > 1e-2, "thinking moves the vectors"

    before, after = load_file(encoder / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    stock, original = (SentenceTransformer(str(path), device="cpu") for path in (folder, encoder))
    assert np.array_equal(stock.encode_document(TEXTS), original.encode_document(TEXTS))


@pytest.mark.parametrize("kind", ["shared layers", "in full"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    kind: str, encoder: Path, language_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the thinker writes is drawn, and the warm-up ends behind the checkpoint.
    changes = {"max_steps": 5, "own_temperature": 0.7, "projection_warm_up": 3, **changes_of(kind, language_model)}
    values = thinker_settings(encoder, data, tmp_path / "whole", **changes)
    whole = run(tmp_path, **values)
    out = tmp_path / "stopped"

    def stop(self: Any, *args: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise Stop
        return plain(self, *args)

    plain = ThinkerTrainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(ThinkerTrainer, "training_step", stop)
        with pytest.raises(Stop):
            run(tmp_path, **values | {"output_dir": str(out)})
    assert (out / "checkpoint-2").is_dir()
    assert_same_thinker(whole, run(tmp_path, **values | {"output_dir": str(out)}))


def test_words_that_are_given_are_read_and_not_taught(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, dict[int, list[int]]]] = []
    plain = ThinkerTrainer._given_words

    def noting(self: ThinkerTrainer, batch: Any) -> dict[int, list[int]]:
        found = plain(self, batch)
        assert found == plain(self, batch), "the same batch has the same words"
        seen.append((batch, found))
        return found

    monkeypatch.setattr(ThinkerTrainer, "_given_words", noting)
    # Half of the records have a second text that answers them.
    more = tmp_path / "more"
    more.mkdir()
    for path in data.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for number, row in enumerate(rows):
            row["positives"] += [f"{row['query']} is answered here as well"] * (number % 2)
        (more / path.name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = thinker_settings(encoder, more, tmp_path / "given", max_steps=2, save_strategy="no")
    given = run(tmp_path, **values, given_reasoning=0.5, given_length=5)
    assert any(words for _, words in seen), "the test needs records with two positives"
    for batch, words in seen:
        assert len(words) <= len(batch.records) / 2
        for row, ids in words.items():
            talk = ReasoningEmbedder(str(given), device="cpu").conversation
            others = [text for text in batch.records[row].positives if text != batch.documents[row]]
            assert ids in [one[:5] for one in talk.text_ids(others)] and 0 < len(ids) <= 5
    # By default there are none, and neither is anything else: settings and weights are those of earlier versions.
    without = run(tmp_path, **values | {"output_dir": str(tmp_path / "without")})
    settings = json.loads((tmp_path / "without" / "run.json").read_text(encoding="utf-8"))
    assert not {"given_reasoning", "given_length"} & settings.keys()
    with pytest.raises(AssertionError):
        assert_same_thinker(given, without)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"given_reasoning": 1.5}, "given_reasoning must be from 0 to 1, got 1.5"),
        ({"given_reasoning": 0.5, "given_length": 0}, "given_length must be at least 1, got 0"),
        ({"given_reasoning": 0.5, "given_length": 500}, "positions"),
        ({"given_reasoning": 0.5, "encoder": None, "model_name_or_path": "some"}, "beside an encoder"),
    ],
)
def test_bad_shares_of_given_words_are_named(
    changes: dict[str, Any], named: str, encoder: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=named):
        values = thinker_settings(encoder, data, tmp_path / "run") | changes
        run(tmp_path, **{name: value for name, value in values.items() if value is not None})


@pytest.mark.slow
def test_killed_it_ends_with_the_same_weights(encoder: Path, data: Path, tmp_path: Path) -> None:
    values = thinker_settings(encoder, data, tmp_path / "whole", max_steps=7)
    whole = run(tmp_path, **values)
    out = tmp_path / "killed"
    kill_at(out / "checkpoint-4", "training.sft", write(tmp_path, values | {"output_dir": str(out)}), seconds=240)
    assert_same_thinker(whole, run(tmp_path, **values | {"output_dir": str(out)}))


def test_no_words_target_words_and_own_words_take_part(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[Any], list[Any]]] = []
    targets: list[list[list[int]]] = []
    plain, step = branches.states, ThinkerTrainer.training_step

    def states(model: Any, prompts: Any, written: Any, *rest: Any) -> Any:
        seen.append((prompts, written))
        return plain(model, prompts, written, *rest)

    def training_step(self: Any, model: Any, inputs: Any, count: Any = None) -> torch.Tensor:
        targets.append([ids for ids in inputs["batch"].reasonings if ids is not None])
        return step(self, model, inputs, count)

    monkeypatch.setattr(branches, "states", states)
    monkeypatch.setattr(ThinkerTrainer, "training_step", training_step)
    folder = run(tmp_path, **thinker_settings(encoder, data, tmp_path / "run", max_steps=2, own_reasoning=0.5))
    talk = ReasoningEmbedder(str(folder), device="cpu").conversation
    for (prompts, written), known in zip(seen, targets, strict=True):
        end = talk.embed_token_id
        assert written[:8] == [[end]] * 8 and 0 < len(known) < 8
        assert written[8 : 8 + len(known)] == [[*ids, end] for ids in known]
        own = written[8 + len(known) :]
        assert len(own) == 4 and all(len(ids) > 1 and ids[-1] == end for ids in own)
        assert prompts[8 + len(known) :] == prompts[:8:2]
    rows = steps(tmp_path / "run")
    assert all({"contrast", "triplet", "stay", "language", "own_tokens", "own_closed"} <= set(row) for row in rows)


def test_equal_texts_and_known_positives_are_no_negatives(encoder: Path, tmp_path: Path) -> None:
    records = [
        Record("q0", ("a glacier", "ice"), ("a bank",), "s"),
        Record("q1", ("a  glacier ",), ("rates",), "s"),
        Record("q0", ("a river",), (), "s"),
    ]
    embedder = ReasoningEmbedder.from_encoder(str(encoder), device="cpu")
    questions = Questions.of(embedder, records, tmp_path)
    # White space tells no documents apart.
    assert len(questions.documents) == len(questions.numbers) == 5
    gold, excluded = questions.answers(records, ["ice", "a  glacier ", "a river"], [0, 1, 2, 0])
    texts = list(questions.numbers)
    assert excluded[0].tolist() == excluded[2].tolist() == excluded[3].tolist()
    assert {texts[i] for i in excluded[0].nonzero().flatten().tolist()} >= {"ice", "a river"}
    assert excluded.sum(dim=1).tolist() == [3, 1, 3, 3]
    assert gold[0] == gold[3] and excluded[torch.arange(4), gold].all()
    # The softmax is over the gold document and all that answer nothing.
    asked = torch.nn.functional.normalize(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = []
    for row in range(4):
        scores = questions.documents @ asked[row] / 0.1
        others = scores[~excluded[row]]
        expected.append(torch.logsumexp(torch.cat([scores[gold[row]][None], others]), 0) - scores[gold[row]])
    loss = losses.info_nce(asked, questions.documents, gold, excluded, 0.1)
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_the_term_that_stays_near_holds_the_vector(encoder: Path, data: Path, tmp_path: Path) -> None:
    far = {}
    for weight in (0.0, 1e4):
        changes = {"max_steps": 8, "projection_warm_up": 0, "projection_learning_rate": 1e-2, "stay_weight": weight}
        out = tmp_path / f"run-{weight}"
        run(tmp_path, **thinker_settings(encoder, data, out, **changes, own_reasoning=0.0, save_strategy="no"))
        far[weight] = steps(out)[-1]["stay"]
    assert far[1e4] < 0.1 * far[0.0] and far[0.0] > 1e-3


@pytest.mark.parametrize("warm_up", [2, 1])
def test_the_first_steps_train_p_and_the_head_only(warm_up: int, encoder: Path, data: Path, tmp_path: Path) -> None:
    changes = {"max_steps": 2, "projection_warm_up": warm_up, "lr_scheduler_type": "constant"}
    folder = run(tmp_path, **thinker_settings(encoder, data, tmp_path / "run", **changes))
    trained = thinker_weights(folder)
    start = ReasoningEmbedder.from_encoder(str(encoder), device="cpu").question_side
    assert start is not None
    rest = start.model.state_dict()
    rows = next(value for name, value in trained.items() if name.endswith(".new_rows"))
    new = rest["bert.embeddings.word_embeddings.weight"][-len(rows) :]
    still = [torch.equal(rows, new)]
    still += [not value.any() for name, value in trained.items() if name.endswith(".lora_b")]
    assert all(still) if warm_up == 2 else not any(still)
    head = "cls.predictions.transform.dense.weight"
    assert not torch.equal(trained[f"differences.safetensors:{head}"], rest[head])
    assert trained["projection.safetensors:projection"].abs().max() > 1e-4


def test_p_has_a_learning_rate_of_its_own(encoder: Path, data: Path, tmp_path: Path) -> None:
    changes = {"max_steps": 1, "learning_rate": 1e-9, "projection_learning_rate": 0.25, "max_grad_norm": 1e9}
    folder = run(tmp_path, **thinker_settings(encoder, data, tmp_path / "run", **changes, save_strategy="no"))
    # The first step of Adam is as long as its rate.
    largest = thinker_weights(folder)["projection.safetensors:projection"].abs().max()
    assert largest == pytest.approx(0.25, rel=1e-2)


def test_going_on_from_a_checkpoint_adds_up_what_was_learned(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tiny_encoders.save_with_thinker(tmp_path / "start", encoder, ends=9.0)
    kept = keep_vectors(monkeypatch, thinker_train)
    changes = {"max_steps": 2, "learning_rate": 1e-2, "projection_warm_up": 0}
    folder = run(tmp_path, **thinker_settings(start, data, tmp_path / "run", **changes))
    found = ReasoningEmbedder(str(folder), device="cpu").encode_query(list(kept))
    np.testing.assert_allclose(found, np.stack(list(kept.values())), atol=1e-5)
    factor = "differences.safetensors:bert.encoder.layer.1.output.dense.weight.lora_a"
    before, after = thinker_weights(start)[factor], thinker_weights(folder)[factor]
    assert len(after) == len(before) + 4 and torch.equal(after[: len(before)], before)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoder": "nowhere"}, "There is no model 'nowhere'"),
        ({"thinker": "nowhere"}, "There is no model 'nowhere'"),
        ({"use_peft": False}, "is trained by low-rank differences: set use_peft"),
        ({"stay_weight": -1.0}, "stay_weight must be at least 0, got -1"),
        ({"contrast_weight": -1.0}, "contrast_weight must be at least 0, got -1"),
        ({"projection_learning_rate": 0.0}, "projection_learning_rate must be above 0, got 0"),
        ({"projection_warm_up": -1}, "projection_warm_up must be at least 0, got -1"),
        ({"gradient_accumulation_steps": 2}, "raise per_device_train_batch_size instead"),
        ({"query_length": 90}, "The thinker has 96 positions, but query_length 90 and 9 written tokens"),
        ({"prompts": {"reasoning_system": "Think."}}, "prompts are for a thinker of its own"),
        ({"per_device_train_batch_size": 64}, "No source has 32 records"),
        ({"model_name_or_path": "searchr3"}, "is for single models; beside an encoder, thinker names"),
        ({"average_with_start": 0.5}, "average_with_start: for single models only"),
    ],
)
def test_bad_settings_say_what_is_wrong_and_leave_nothing_behind(
    changes: dict[str, Any], message: str, encoder: Path, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = write(tmp_path, thinker_settings(encoder, data, tmp_path / "run") | changes)
    assert sft.main(["--config", str(config)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and message in said
    assert not (tmp_path / "run").exists()


def test_encoders_and_thinkers_that_do_not_go_together(
    encoder: Path, language_model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tiny_encoders.save_with_thinker(tmp_path / "start", encoder, ends=9.0)
    other = tmp_path / "other"
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = Transformer(str(language_model))
    SentenceTransformer(modules=[words, Pooling(32, "lasttoken")], device="cpu").save_pretrained(str(other))
    for changes, message in (
        ({"encoder": str(start), "thinker": str(language_model)}, "has a thinker already; leave out --thinker"),
        ({"encoder": str(other)}, "needs a bidirectional BERT; this encoder is of type 'qwen2'"),
    ):
        config = write(tmp_path, thinker_settings(encoder, data, tmp_path / "run") | changes)
        assert sft.main(["--config", str(config)]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "run").exists()


def test_a_run_of_another_thinker_is_not_continued(encoder: Path, data: Path, tmp_path: Path) -> None:
    start = tiny_encoders.save_with_thinker(tmp_path / "start", encoder, ends=9.0)
    values = thinker_settings(start, data, tmp_path / "run", max_steps=1)
    run(tmp_path, **values)
    tiny_encoders.save_with_thinker(start, encoder, ends=9.0, seed=5)
    with pytest.raises(ValueError, match="base_of_thinker"):
        run(tmp_path, **values)


def test_the_config_of_the_packaged_model_trains_one_of_its_kind(encoder: Path, data: Path, tmp_path: Path) -> None:
    """The file as it is; only the encoder, the data and the sizes are replaced."""
    small = [
        *("--encoder", str(encoder), "--data", str(data), "--sources", '{"alpha": 1, "beta": 1}'),
        *("--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--per_device_train_batch_size", "16"),
        *("--groups_per_step", "2", "--query_length", "40", "--eval_steps", "1", "--logging_steps", "1"),
        *("--held_out_one_in", "4", "--disable_tqdm", "true"),
    ]
    folder = sft.train(*parse("", ["--config", str(CONFIGS / "mini.yaml"), *small]))
    assert ReasoningEmbedder(str(folder), device="cpu").reason(["a csv file"])[0].embedding.shape == (32,)
    measured = [row for row in log_of(tmp_path / "run") if "eval_ndcg@10_reasoning" in row]
    names = {"eval_ndcg@10_direct", "eval_ndcg@10_budget_0", "eval_distance", "eval_nothing_to_add_share"}
    assert len(measured) == 2 and names <= set(measured[0])
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stay_weight"] == 3
