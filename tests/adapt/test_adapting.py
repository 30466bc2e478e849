"""Adapting as a whole: documents keep their bits, the three sizes load, nothing to learn writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.adapt import AdaptSettings, adapt, grid
from searchr3_embed.adapt.encoders import from_encoder
from searchr3_embed.adapt.grid import STATE_FILE
from searchr3_embed.adapt.learner import Candidate, Schedule
from tests import tiny_encoders
from tests.adapt import small_corpus

# Few weights, random ones: they learn at rates that would ruin a real encoder.
SCHEDULES = {
    "projection": Schedule((Candidate(1e-3, 1.0),), every=10, most_steps=100),
    "question-encoder": Schedule((Candidate(3e-3, 0.1),), every=10, most_steps=40),
    "thinker": Schedule((Candidate(1e-2, 0.1),), every=10, most_steps=40),
}
QUESTIONS = ["how do i read a csv file", "which river flows through paris"]


def settings_of(train: str, keep_anyway: bool = True, **options: Any) -> AdaptSettings:
    return AdaptSettings(train=train, minutes=5, keep_anyway=keep_anyway, schedule=SCHEDULES[train], **options)


@pytest.fixture(scope="module")
def embedder(encoder: Path) -> ReasoningEmbedder:
    return ReasoningEmbedder.from_encoder(encoder, device="cpu")


@pytest.mark.parametrize("train", ["projection", "question-encoder", "thinker"])
def test_each_size_learns_loads_and_leaves_documents_alone(
    embedder: ReasoningEmbedder, train: str, tmp_path: Path
) -> None:
    texts = list(small_corpus.documents().values())
    before = embedder.encode_document(texts), embedder.encode_query(QUESTIONS)
    settings = settings_of(train)
    adapted, report = adapt(embedder, small_corpus.documents(), small_corpus.pairs(), settings)
    assert report.kept_questions == 12 and report.training_questions == 48 and report.evaluations
    assert report.better and report.after > report.before + 0.05, report.lines()
    assert np.array_equal(embedder.encode_document(texts), before[0])
    assert np.array_equal(embedder.encode_query(QUESTIONS), before[1])

    adapted.save_pretrained(str(tmp_path / "model"))
    again = ReasoningEmbedder(tmp_path / "model", device="cpu")
    for model in (adapted, again):
        assert np.array_equal(model.encode_document(texts), before[0])
        assert np.array_equal(model.encode(texts), before[0])
        assert np.array_equal(model.encode_query(QUESTIONS, reason=False), before[1])
    kept = adapted.encode_query(texts)
    assert np.abs(kept - embedder.encode_query(texts)).max() > 1e-3
    np.testing.assert_allclose(again.encode_query(texts), kept, atol=2e-3 if train == "thinker" else 1e-6)
    stock = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(stock.encode_document(texts), before[0], atol=1e-5)
    if train != "thinker":
        np.testing.assert_allclose(stock.encode_query(texts), kept, atol=1e-5)
        assert again.reason(QUESTIONS[0]).reasoning_tokens == 0
    assert again.check_index(texts, before[0])


def test_the_report_is_true(embedder: ReasoningEmbedder) -> None:
    """What is reported of the finished model is what the finished model does."""
    adapted, report = adapt(
        embedder,
        small_corpus.documents(),
        small_corpus.pairs(),
        settings_of("projection"),
    )
    kept = {row.question: (row.before, row.after) for row in (*report.gained, *report.lost)}
    names, texts = zip(*small_corpus.documents().items(), strict=True)
    vectors = adapted.encode_document(list(texts))
    answers = dict(small_corpus.pairs())
    for question, (_, after) in kept.items():
        order = np.argsort(-(vectors @ adapted.encode_query(question)))
        place = [names[row] for row in order].index(answers[question])
        assert after == pytest.approx(1 / np.log2(place + 2) if place < 10 else 0, abs=1e-3)


@pytest.mark.parametrize("train", ["projection", "question-encoder"])
def test_random_pairs_teach_nothing(embedder: ReasoningEmbedder, train: str) -> None:
    adapted, report = adapt(
        embedder,
        small_corpus.documents(),
        small_corpus.random_pairs(),
        settings_of(train, keep_anyway=False),
    )
    assert adapted is embedder and not report.better and not report.written


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(
    embedder: ReasoningEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortened = grid.Task.evaluate
    looks: list[int] = []

    def counted(self: Any, *args: Any) -> Any:
        looks.append(1)
        if len(looks) == 4 and stop:
            raise KeyboardInterrupt
        return shortened(self, *args)

    monkeypatch.setattr(grid.Task, "evaluate", counted)
    monkeypatch.setattr(grid, "_SAVE_EVERY", 0.0)
    schedule = Schedule((Candidate(1e-2, 0.1), Candidate(3e-3, 0.1)), every=5, most_steps=20)
    settings = AdaptSettings(train="projection", minutes=5, schedule=schedule)
    given = embedder, small_corpus.documents(), small_corpus.pairs(), settings
    stop = False
    _, whole = adapt(*given)
    looks.clear()
    stop = True
    with pytest.raises(KeyboardInterrupt):
        adapt(*given, work_folder=tmp_path)
    assert (tmp_path / STATE_FILE).is_file()
    stop = False
    looks.clear()
    _, after = adapt(*given, work_folder=tmp_path)
    assert len(looks) < len(whole.evaluations)
    assert (after.after, after.chosen, after.evaluations) == (whole.after, whole.chosen, whole.evaluations)
    # Another run must not take the state for its own.
    looks.clear()
    _, other = adapt(*given[:2], small_corpus.random_pairs(), settings, work_folder=tmp_path)
    assert len(looks) == len(other.evaluations)


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "cls", "prompts": tiny_encoders.PROMPTS},
        {"dimension": 24, "normalise": False},
    ],
    ids=["cls and prompts", "dense, lengths kept"],
)
@pytest.mark.parametrize("train", ["projection", "question-encoder"])
def test_encoders_of_other_kinds(options: dict[str, Any], train: str, tmp_path: Path) -> None:
    folder = tiny_encoders.save_bert(tmp_path / "encoder", **options)
    embedder = from_encoder(folder, device="cpu")
    texts = list(small_corpus.documents().values())
    stock = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(embedder.encode_query(texts), stock.encode_query(texts), atol=1e-5)
    settings = settings_of(train)
    adapted, report = adapt(embedder, small_corpus.documents(), small_corpus.pairs(), settings)
    assert report.evaluations
    np.testing.assert_allclose(adapted.encode_document(texts), stock.encode_document(texts), atol=1e-5)
    assert np.abs(adapted.encode_query(texts) - stock.encode_query(texts)).max() > 1e-4


def test_low_rank_question_encoder_is_written_without_adapters(embedder: ReasoningEmbedder, tmp_path: Path) -> None:
    settings = settings_of("question-encoder", lora=4)
    adapted, _ = adapt(embedder, small_corpus.documents(), small_corpus.pairs(), settings)
    adapted.save_pretrained(str(tmp_path))
    again = ReasoningEmbedder(tmp_path, device="cpu")
    assert not any("lora" in name for name, _ in again.named_parameters())
    np.testing.assert_allclose(again.encode_query(QUESTIONS), adapted.encode_query(QUESTIONS), atol=1e-6)
    assert np.abs(again.encode_query(QUESTIONS) - embedder.encode_query(QUESTIONS)).max() > 1e-4


def test_what_was_adapted_can_be_adapted_again(embedder: ReasoningEmbedder) -> None:
    settings = settings_of("projection")
    once, _ = adapt(embedder, small_corpus.documents(), small_corpus.pairs(), settings)
    twice, report = adapt(once, small_corpus.documents(), small_corpus.pairs(), settings)
    assert report.before == pytest.approx(
        adapt(once, small_corpus.documents(), small_corpus.pairs(), settings)[1].before
    )
    assert np.array_equal(twice.encode_document(QUESTIONS), embedder.encode_document(QUESTIONS))


def test_a_single_model_and_bad_settings_are_refused(mini_checkpoint: Path, embedder: ReasoningEmbedder) -> None:
    with pytest.raises(ValueError, match="same weights"):
        adapt(ReasoningEmbedder(mini_checkpoint, device="cpu"), small_corpus.documents(), small_corpus.pairs())
    with pytest.raises(ValueError, match="at least 10 different questions, 3"):
        adapt(embedder, small_corpus.documents(), small_corpus.pairs()[:3])
    for options, words in (
        ({"train": "all"}, "train must be one of"),
        ({"minutes": 0}, "minutes must be above 0"),
        ({"lora": -1}, "lora must be"),
        ({"lora": 4, "train": "projection"}, "one matrix"),
        ({"kept_share": 1.0}, "kept_share"),
    ):
        with pytest.raises(ValueError, match=words):
            AdaptSettings(**options)  # type: ignore[arg-type]


def test_moves_of_a_route_survive_half_precision_and_threads(embedder: ReasoningEmbedder) -> None:
    settings = settings_of("projection")
    adapted, _ = adapt(embedder, small_corpus.documents(), small_corpus.pairs(), settings)
    full = adapted.encode_query(QUESTIONS)
    half = adapted.to(torch.bfloat16).encode_query(QUESTIONS, convert_to_tensor=True).float()
    assert torch.cosine_similarity(half, torch.from_numpy(full)).min() > 0.99
    with pytest.raises(ValueError, match="from 0 to 0"):
        adapted.encode_query(QUESTIONS, max_reasoning_tokens=2)
