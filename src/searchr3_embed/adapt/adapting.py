"""Adapts the question side of an embedder to a corpus: all steps, one after another."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from searchr3_embed.adapt import grid, report
from searchr3_embed.adapt.corpus import Documents, documents_of, vectors_of
from searchr3_embed.adapt.general_questions import GENERAL_QUESTIONS
from searchr3_embed.adapt.learner import Learner, Schedule
from searchr3_embed.adapt.names import DEFAULT, LEARNERS, check_installed
from searchr3_embed.adapt.pairs import Pairs, pairs_of
from searchr3_embed.adapt.report import Report
from searchr3_embed.adapt.retrieval import Space, ndcg
from searchr3_embed.adapt.significance import paired_test
from searchr3_embed.adapt.split import split
from searchr3_embed.adapt.vector_sources import StoredVectors
from searchr3_embed.embedder import ReasoningEmbedder

logger = logging.getLogger(__name__)

LEAST_QUESTIONS = 10
# A gain that chance makes as often as this is none: the best of several looks is chosen, so small ones are flattered.
CHANCE = 0.1


@dataclasses.dataclass(frozen=True)
class AdaptSettings:
    """How to adapt.

    Attributes:
        train: ``"question-encoder"``, ``"thinker"`` or ``"projection"``.
        lora: Rank of low-rank differences; None takes that of what is trained: 0, all weights, for a question encoder,
            64 for a thinker.
        minutes: Time for training.
        kept_share: What part of the questions is kept apart to choose and to report by.
        keep_anyway: Give the adapted embedder even if it is no better.
        seed: Of all that is drawn.
        batch_size: Documents embedded at once.
        schedule: Rates, distances and steps; None takes those of what is trained.
    """

    train: str = DEFAULT
    lora: int | None = None
    minutes: float = 15.0
    kept_share: float = 0.2
    keep_anyway: bool = False
    seed: int = 7
    batch_size: int = 32
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        if self.train not in LEARNERS:
            raise ValueError(f"train must be one of {', '.join(LEARNERS)}, got {self.train!r}.")
        if self.lora is not None and (type(self.lora) is not int or self.lora < 0):
            raise ValueError(f"lora must be a rank, an integer from 0, got {self.lora!r}.")
        if self.lora and self.train == "projection":
            raise ValueError("lora is for a thinker or a question-encoder; a projection is one matrix.")
        if self.lora == 0 and self.train == "thinker":
            raise ValueError("A thinker is trained by low-rank differences: lora must be above 0, or left out.")
        if not self.minutes > 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes!r}.")
        if not 0 < self.kept_share < 1:
            raise ValueError(f"kept_share must be between 0 and 1, got {self.kept_share!r}.")


def adapt(
    embedder: ReasoningEmbedder,
    documents: Any,
    pairs: Any,
    settings: AdaptSettings | None = None,
    *,
    vectors: StoredVectors | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    work_folder: str | os.PathLike[str] | None = None,
    made: str = "given",
) -> tuple[ReasoningEmbedder, Report]:
    """Trains the question side of an embedder on a corpus; documents keep their vectors, to the bit.

    Args:
        embedder: An encoder with a thinker, or with a route for questions. It is not changed.
        documents: A path, a mapping of ids to texts, or a sequence of texts; see ``documents_of``.
        pairs: A path of a JSONL file, or a sequence of (question, id or text); see ``pairs_of``.
        settings: How.
        vectors: Vectors of the documents that are there already, see ``read_vectors``.
        cache_folder: Where document vectors are kept; None for nowhere.
        work_folder: Where the state of the training is kept, so that a call that was killed goes on; None for nowhere.
        made: How the pairs were made, for the report.

    Returns:
        The adapted embedder, or ``embedder`` itself where nothing was better, and the report.

    Raises:
        ValueError: The embedder is a single model, or there are too few pairs; the message says what is accepted.
        FloatingPointError: A loss is not a number.
        ImportError: A package of the extra ``adapt`` is not installed.
    """
    settings = settings or AdaptSettings()
    check_installed()
    if embedder.question_side is None:
        raise ValueError(
            "This model embeds questions and documents by the same weights, so training would change every document's "
            "vector. Adapt an encoder with a thinker, or name an encoder (from_encoder, --encoder)."
        )
    corpus = documents_of(documents)
    found = pairs_of(pairs, corpus)
    if len(found) < LEAST_QUESTIONS:
        raise ValueError(f"Adapting needs at least {LEAST_QUESTIONS} different questions, {len(found)} are left.")
    parts = split(found, settings.kept_share, settings.seed)
    on_truncate, embedder.on_truncate = embedder.on_truncate, "ignore"
    try:
        stored, origin = vectors_of(embedder, corpus, vectors, cache_folder, settings.batch_size)
        run = _Adapting(embedder, corpus, found, parts, stored, settings)
        return run.work(origin, work_folder, made)
    finally:
        embedder.on_truncate = on_truncate


class _Adapting:
    """One call of :func:`adapt` whose input is sound."""

    def __init__(
        self,
        embedder: ReasoningEmbedder,
        corpus: Documents,
        pairs: Pairs,
        parts: tuple[list[int], list[int]],
        stored: np.ndarray,
        settings: AdaptSettings,
    ) -> None:
        self.embedder, self.corpus, self.pairs, self.settings = embedder, corpus, pairs, settings
        self.training, self.kept = pairs.part(parts[0]), pairs.part(parts[1])
        base = [self._direct(part.questions) for part in (self.training, self.kept)]
        self.space = Space.of(stored, base[0].numpy(), str(embedder.similarity_fn_name))
        self.base = (base[0], base[1])
        before = np.asarray(embedder.encode_query(list(self.kept.questions), show_progress_bar=False))
        self.encoder_scores = ndcg(self.space, self.base[1].numpy(), self.kept)
        self.before_scores = ndcg(self.space, before, self.kept)
        # Both must be beaten: the encoder alone, and the model as it was given.
        self.to_beat = max((self.encoder_scores, self.before_scores), key=lambda scores: float(scores.mean()))
        digest = hashlib.sha256(stored.tobytes())
        for question, answers in zip(pairs.questions, pairs.answers, strict=True):
            digest.update(f"{question}\0{answers}\0".encode())
        # Minutes may change: more of them go on.
        chosen = dataclasses.asdict(settings) | {"minutes": 0, "keep_anyway": False}
        digest.update(json.dumps([chosen, parts]).encode() + before.tobytes())
        self.key = digest.hexdigest()

    def _direct(self, texts: Any) -> torch.Tensor:
        found = self.embedder.encode_query(list(texts), reason=False, show_progress_bar=False)
        return torch.from_numpy(np.array(found, dtype=np.float32))

    def work(
        self, origin: Any, work_folder: str | os.PathLike[str] | None, made: str
    ) -> tuple[ReasoningEmbedder, Report]:
        """Trains, compares, reports."""
        learner = learner_of(self.embedder, self.training.questions, self.settings)
        learner.schedule = self.settings.schedule or learner.schedule
        task = grid.Task(
            self.space, self.training, self.kept, self.base, float(self.to_beat.mean()), self.settings.seed
        )
        temporary = tempfile.mkdtemp(prefix="adapt-") if work_folder is None else None
        try:
            folder = Path(temporary or os.fspath(work_folder or ""))
            known, weights = grid.search(learner, task, self.settings.minutes, folder, self.key)
        finally:
            if temporary:
                shutil.rmtree(temporary, ignore_errors=True)
        if known.best is None and self.settings.keep_anyway and known.evaluations:
            logger.warning("Nothing was better; what is kept is the training as it ended.")
            weights = learner.state()
        learner.load(weights)
        after = learner.vectors(self.kept.questions).cpu().numpy()
        after_scores = ndcg(self.space, after, self.kept)
        test = paired_test(list(zip(after_scores.tolist(), self.to_beat.tolist(), strict=True)))
        better = known.best is not None and test["difference"] > 0 and test["p_value"] <= CHANCE
        moved = self._general(learner)
        gained, lost = report.changes(self.kept, self.to_beat, after_scores)
        found = Report(
            trained=self.settings.train,
            encoder=self.embedder.encoder_name,
            better=better,
            written=better or self.settings.keep_anyway,
            encoder_ndcg=round(float(self.encoder_scores.mean()), 5),
            before=round(float(self.before_scores.mean()), 5),
            after=round(float(after_scores.mean()), 5),
            p_value=round(test["p_value"], 5),
            training_questions=len(self.training),
            kept_questions=len(self.kept),
            documents=len(self.corpus.ids),
            vectors=dict(origin),
            dropped=report.counted({**self.corpus.dropped, **self.pairs.dropped}),
            pairs=made,
            chosen=self._chosen(learner, known),
            evaluations=[dataclasses.asdict(row) for row in known.evaluations],
            gained=gained,
            lost=lost,
            general_distance=round(float(moved.mean()), 5),
            general_furthest=(GENERAL_QUESTIONS[int(moved.argmax())], round(float(moved.max()), 5)),
            seconds=round(known.seconds, 1),
            candidates=[str(candidate) for candidate in learner.schedule.candidates[: known.tried]],
            notes=self._notes(made),
        )
        return (learner.finished() if found.written else self.embedder), found

    def _chosen(self, learner: Learner, known: grid.Search) -> str | None:
        if known.best is None:
            return None
        return f"{learner.schedule.candidates[known.best.candidate]}, step {known.best.step}"

    def _general(self, learner: Learner) -> np.ndarray:
        after = learner.vectors(GENERAL_QUESTIONS).cpu()
        return (1 - F.cosine_similarity(after, self._direct(GENERAL_QUESTIONS), dim=-1)).clamp(min=0).numpy()

    def _notes(self, made: str) -> list[str]:
        notes = []
        if len(self.pairs) < report.FEW_PAIRS:
            notes.append(
                f"note: {len(self.pairs)} questions are few; with less than {report.FEW_PAIRS} expect a gain of a "
                "point of nDCG@10 or none, and a report that chance decides as much as the model"
            )
        if made == "from the text":
            notes.append(
                "note: sentences of the corpus are weaker than questions that people ask: they are written in the "
                "words of the documents, so little is learned of other words, and the kept ones flatter every model"
            )
        return notes


def learner_of(embedder: ReasoningEmbedder, questions: Any, settings: AdaptSettings) -> Learner:
    """What the settings train."""
    if settings.train == "projection":
        from searchr3_embed.adapt.routes import Projection

        return Projection(embedder, questions)
    if settings.train == "question-encoder":
        from searchr3_embed.adapt.routes import QuestionEncoder

        return QuestionEncoder(embedder, questions, settings.lora or 0)
    from searchr3_embed.adapt.thinking import Thinker

    return Thinker(embedder, questions, settings.lora or 64, settings.seed)
