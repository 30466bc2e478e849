"""The causal base: made from an encoder, trained, killed, resumed and exported, all in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.conversation import Prompts
from tests import tiny
from training import base_model
from training.base_model import Config
from training.data import Record, read_folder, read_records, split_held_out
from training.reasoning import predictable_terms

TOPICS = {
    "river": "the river flows through the valley into the sea where water and salt meet",
    "cold": "a common cold brings cough fever and a sore throat for some days",
    "csv": "the csv module has a reader that splits each row of a file into columns",
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, mini_checkpoint: Path) -> Path:
    """A small random bidirectional encoder with the tokenizer of the small checkpoint, embed token left out."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = tiny.bert_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for source in ("alpha", "beta"):
        rows = [
            {"query": f"{source} tell me about {word} {n}", "positives": [f"{text} {n}"], "negatives": []}
            for n in range(12)
            for word, text in TOPICS.items()
        ]
        (folder / f"{source}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "notes.txt").write_text("\n".join("a paragraph of some more words " * 5 for _ in range(9)))
    return folder


@pytest.fixture
def overrides(teacher: Path) -> list[str]:
    return [
        f"teacher={teacher}",
        "sources={alpha: 1, beta: 0.5}",
        "held_out_one_in=8",
        "max_length=64",
        "query_length=20",
        "document_lengths={16: 0.5, 40: 0.5}",
        "steps=8",
        "reasoning_from=2",
        "own_reasoning_from=4",
        "pairs_per_step=6",
        "excerpts_per_step=2",
        "excerpt_sources={notes: 2, beta: 1}",
        "further_queries_per_step=3",
        "warmup_steps=2",
        "learning_rate=0.003",
        "precision=fp32",
        "evaluate_every=4",
        "save_every=3",
    ]


def run(data: Path, out: Path, overrides: list[str]) -> int:
    arguments = ["--data", str(data), "--texts", str(data / "notes.txt"), "--out", str(out)]
    return base_model.main([*arguments, *overrides])


def test_interrupted_equals_uninterrupted_and_the_result_loads(
    data: Path, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(data, tmp_path / "whole", overrides) == 0

    class Killed(BaseException):
        pass

    plain, calls = base_model.losses, 0

    def killed_at_step_five(*args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise Killed
        return plain(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(base_model, "losses", killed_at_step_five)
    with pytest.raises(Killed):
        run(data, tmp_path / "parts", overrides)
    monkeypatch.setattr(base_model, "losses", plain)
    assert run(data, tmp_path / "parts", overrides) == 0

    whole, parts = (torch.load(tmp_path / name / "state.pt") for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 8
    for name, weight in whole["model"].items():
        assert torch.equal(weight, parts["model"][name]), name
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    for log in logs:
        assert [row["step"] for row in log] == list(range(8))
        assert {"distil", "contrast", "reasoning_distil", "reasoning_contrast", "language"} <= set(log[-1])
        for row in log:
            row.pop("seconds")
    assert logs[0] == logs[1]

    embedder = ReasoningEmbedder(tmp_path / "whole" / "model", device="cpu")
    stock = SentenceTransformer(str(tmp_path / "whole" / "model"), model_kwargs={"dtype": torch.float32}, device="cpu")
    np.testing.assert_allclose(stock.encode(["a river"]), embedder.encode(["a river"]), atol=1e-5)
    state = whole["model"]["bert.embeddings.word_embeddings.weight"]
    saved = embedder.causal_lm.get_input_embeddings().weight
    torch.testing.assert_close(saved, state.half().float())


def test_training_pulls_the_token_towards_the_teacher(data: Path, overrides: list[str], tmp_path: Path) -> None:
    settings = [*overrides, "steps=60", "evaluate_every=60", "reasoning_from=60", "own_reasoning_from=60"]
    assert run(data, tmp_path, settings) == 0
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first, last = (sum(row["distil"] for row in part) / 10 for part in (log[:10], log[-10:]))
    assert last < 0.7 * first


def test_weights_of_the_encoder_arrive_unchanged(teacher: Path) -> None:
    model, tokenizer = base_model.make_causal(str(teacher), Prompts())
    encoder = BertModel.from_pretrained(teacher)
    for name, weight in encoder.named_parameters():
        if "pooler" not in name:
            mine = dict(model.bert.named_parameters())[name]
            assert torch.equal(mine[: len(weight)], weight), name
    ids = torch.tensor([[5, 6, 7, 8]])
    changed = torch.tensor([[5, 6, 7, 9]])
    with torch.no_grad():
        states, others = model.bert(ids).last_hidden_state, model.bert(changed).last_hidden_state
    torch.testing.assert_close(states[:, :3], others[:, :3])  # causal: no token sees the next one
    assert tokenizer.convert_tokens_to_ids("<|embed_token|>") == len(tokenizer) - 1


def test_further_training_starts_where_the_first_ended(data: Path, overrides: list[str], tmp_path: Path) -> None:
    assert run(data, tmp_path / "first", overrides) == 0
    start = tmp_path / "first" / "model"
    further = [*overrides, f"init_from={start}", "average_with_start=0.25", "steps=2", "reasoning_from=0"]
    assert run(data, tmp_path / "further", further) == 0
    name = "bert.encoder.layer.0.output.dense.weight"
    began = load_file(start / "model.safetensors")[name].float()
    trained = torch.load(tmp_path / "further" / "state.pt", weights_only=True)["model"][name]
    result = load_file(tmp_path / "further" / "model" / "model.safetensors")[name].float()
    assert not torch.allclose(began, trained, atol=1e-4)
    torch.testing.assert_close(result, 0.25 * began + 0.75 * trained, atol=2e-3, rtol=2e-3)  # half precision

    other_words = [*further, "prompts={max_reasoning_tokens: 3}"]
    assert run(data, tmp_path / "refused", other_words) == 2


def test_batches_depend_on_the_step_alone(data: Path, overrides: list[str]) -> None:
    config = Config.load(Path(base_model.__file__).parent / "configs" / "base_model.yaml", overrides)
    training = read_folder(data, config.sources)
    _, tokenizer = base_model.make_causal(config.teacher, Prompts())
    conversation = base_model.Conversation(tokenizer, Prompts(), max_length=64, position_limit=128)
    forwards = base_model.Batches(config, training, {"notes": ["a paragraph", "another one"]}, conversation)
    backwards = base_model.Batches(config, training, {"notes": ["a paragraph", "another one"]}, conversation)
    steps = range(30)  # several epochs
    assert [forwards[s] for s in steps] == [backwards[s] for s in reversed(steps)][::-1]
    assert forwards[0] != forwards[1]


def test_same_answer_is_no_negative() -> None:
    rows = [Record("q0", ("d0", "d2"), (), "s"), Record("q1", ("d1",), (), "s")]
    batch = base_model.Batch(rows, [], [], ["d0", "d1", "d2"], [], [], [])
    assert base_model.other_answers(batch).tolist() == [[True, False, True], [False, True, False]]


def test_terms_are_predictable_salient_and_new() -> None:
    rows = [
        Record(f"{word} question {n}", (f"{text} rare{chr(97 + n)}x",), (), "s")
        for n in range(9)
        for word, text in TOPICS.items()
    ]
    vectors = np.eye(3, dtype=np.float32)[[i % 3 for i in range(len(rows))]]
    terms = predictable_terms(rows, vectors, most_terms=3)
    for row, chosen in zip(rows, terms, strict=True):
        word = row.query.split()[0]
        assert 0 < len(chosen) <= 3 and len(set(chosen)) == len(chosen)
        assert set(chosen) <= set(TOPICS[word].split())
        assert not any(term[:5] == word[:5] for term in chosen)


def test_nothing_predictable_gives_no_terms() -> None:
    rows = [Record(f"question {n}", ("the same document for all of them",), (), "s") for n in range(6)]
    assert predictable_terms(rows, np.eye(6, dtype=np.float32)) == [[]] * 6


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "JSON"),
        ('{"query": "x"}', "positives"),
        ('{"query": "", "positives": ["x"]}', "non-empty"),
        ("[]", "record"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, line: str, named: str) -> None:
    good = json.dumps({"query": "x", "positives": ["y"]})
    (tmp_path / "a.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=f"a.jsonl:2.*{named}"):
        read_records(tmp_path / "a.jsonl")


def test_bad_settings_are_named(
    data: Path, overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra, named in (("learning_rat=1", "learning_rat"), ("oops", "oops"), ("precision=fp8", "fp8")):
        assert run(data, tmp_path, [*overrides, extra]) == 2
        assert named in capsys.readouterr().err
    assert run(data, tmp_path, [*overrides, "sources={gamma: 1}"]) == 2
    assert "gamma" in capsys.readouterr().err


def test_held_out_rows_are_apart_and_stable() -> None:
    rows = [Record(f"q{i}", ("d",), (), "s") for i in range(300)]
    training, apart = split_held_out(rows, one_in=10, limit=1000)
    assert apart and len(training) + len(apart) == 300
    again, _ = split_held_out(rows[::-1], one_in=10, limit=1000)
    assert {r.query for r in again} == {r.query for r in training}
