"""A small grid of rates and distances, time-boxed, with early stopping on questions that are kept apart.

Its state is written at least twice a minute, so that a kill loses less than a minute; batches depend on nothing but
the seed and the step, so a run that went on ends as one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from searchr3_embed.adapt import losses
from searchr3_embed.adapt.learner import Candidate, Learner
from searchr3_embed.adapt.pairs import Pairs
from searchr3_embed.adapt.retrieval import Space, ndcg
from searchr3_embed.files import replacing

logger = logging.getLogger(__name__)

STATE_FILE = "adapt.state"
_TEMPERATURE = 0.05
_WARM_UP = 5
# Evaluations of a candidate in a row that were not its best: it has stopped learning.
_PATIENCE = 4
# Share of the time that one candidate may take while others wait.
_LONGEST_SHARE = 0.5
_SAVE_EVERY = 25.0


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One look at the questions that are kept apart.

    Attributes:
        candidate: Number of the candidate.
        step: After how many steps.
        ndcg: Mean nDCG@10.
        distance: Mean 1 - cosine of the kept questions' vectors to the encoder's.
        loss: Mean of the training loss since the last look.
    """

    candidate: int
    step: int
    ndcg: float
    distance: float
    loss: float


@dataclasses.dataclass
class Search:
    """What is known while the grid is searched; all of it is in the state file.

    Attributes:
        key: Of the run: the same settings, pairs and vectors.
        candidate: Number of the one in training.
        step: Its steps so far.
        waited: Its evaluations since its best one.
        own_best: Its best nDCG@10.
        best: The best evaluation of all candidates.
        evaluations: All of them.
        seconds: Spent, over all runs.
        candidate_seconds: Spent on the one in training.
        tried: How many candidates were begun.
    """

    key: str
    candidate: int = 0
    step: int = 0
    waited: int = 0
    own_best: float = -1.0
    best: Evaluation | None = None
    evaluations: list[Evaluation] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    candidate_seconds: float = 0.0
    tried: int = 0


@dataclasses.dataclass
class Task:
    """What the grid is searched on.

    Attributes:
        space: The corpus.
        training: Questions to learn from.
        kept: Questions to choose by.
        base: The encoder's vectors of the questions in training, then of those that are kept; two tensors.
        baseline: The nDCG@10 to beat; what is no better is never chosen.
    """

    space: Space
    training: Pairs
    kept: Pairs
    base: tuple[Tensor, Tensor]
    baseline: float
    seed: int = 7

    def __post_init__(self) -> None:
        answered = sorted({row for answers in self.training.answers for row in answers})
        self._numbers = {row: number for number, row in enumerate(answered)}
        # Only documents that answer some question: those that never do would be pushed away from all questions.
        self._documents = torch.from_numpy(self.space.documents[answered])

    def loss(self, learner: Learner, rows: Sequence[int], candidate: Candidate, step: int) -> Tensor:
        """The softmax over all documents that answer a question in training, and what keeps vectors near."""
        moved = learner.moved(rows)
        base = self.base[0][torch.tensor(list(rows))].to(moved.device)
        documents = self._documents.to(moved.device)
        asked = F.normalize(moved, dim=-1) if self.space.cosine else moved / self.space.length
        answers = [[self._numbers[row] for row in self.training.answers[number]] for number in rows]
        gold = torch.tensor([some[step % len(some)] for some in answers], device=moved.device)
        excluded = torch.zeros(len(rows), len(documents), dtype=torch.bool, device=moved.device)
        for place, some in enumerate(answers):
            excluded[place, some] = True
        contrast = losses.info_nce(asked, documents, gold, excluded, _TEMPERATURE)
        return contrast + candidate.stay * (1 - F.cosine_similarity(moved, base, dim=-1).mean())

    def batch(self, candidate: int, step: int, size: int) -> list[int]:
        """The numbers of the questions of a step; each question comes once in an epoch."""
        count = len(self.training)
        size = min(size, count)
        per_epoch = max(1, count // size)
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([self.seed, candidate, epoch]).permutation(count)
        return [int(row) for row in order[place * size : (place + 1) * size]]

    def evaluate(self, learner: Learner, candidate: int, step: int, loss: float) -> Evaluation:
        """One look at the kept questions."""
        vectors = learner.vectors(self.kept.questions).float().cpu()
        distance = float((1 - F.cosine_similarity(vectors, self.base[1].cpu(), dim=-1)).mean())
        score = float(ndcg(self.space, vectors.numpy(), self.kept).mean())
        return Evaluation(candidate, step, score, distance, loss)


def search(
    learner: Learner,
    task: Task,
    minutes: float,
    folder: Path,
    key: str,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Search, dict[str, Tensor]]:
    """Tries the candidates; goes on where a run with the same key was stopped.

    Args:
        learner: What is trained; it ends with the weights of some step.
        task: What it is trained on.
        minutes: Time for all candidates, over all runs.
        folder: Of the state file.
        key: Tells this run from others.
        clock: Seconds.

    Returns:
        What was found, and the weights of the best evaluation (the first ones, if none was better).

    Raises:
        FloatingPointError: A loss is not a number.
        OSError: The state can't be written.
    """
    first = learner.state()
    run = _Run(learner, task, minutes * 60, folder / STATE_FILE, Search(key), first, clock)
    run.resume()
    with tqdm(total=round(minutes * 60), initial=round(run.known.seconds), unit="s", desc="Training") as bar:
        while run.known.candidate < len(learner.schedule.candidates) and run.time_left():
            run.train_candidate(bar)
    run.save()
    return run.known, run.best_state


@dataclasses.dataclass
class _Run:
    learner: Learner
    task: Task
    seconds: float
    path: Path
    known: Search
    first_state: dict[str, Tensor]
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self.best_state = self.first_state
        self._optimiser_state: dict[str, Any] | None = None
        self._optimiser: torch.optim.Optimizer | None = None
        self._losses: list[float] = []
        self._saved_at = self._last = self.clock()

    def time_left(self) -> bool:
        return self.known.seconds < self.seconds

    def _candidate_may_go_on(self) -> bool:
        waiting = self.known.candidate + 1 < len(self.learner.schedule.candidates)
        most = self.seconds * (_LONGEST_SHARE if waiting else 1.0)
        return self.time_left() and self.known.candidate_seconds < most

    def _tick(self, bar: Any) -> None:
        now = self.clock()
        passed, self._last = now - self._last, now
        self.known.seconds += passed
        self.known.candidate_seconds += passed
        bar.n = min(bar.total, round(self.known.seconds))
        best = self.known.best
        bar.set_postfix_str(f"nDCG@10 {self.task.baseline:.3f} -> {best.ndcg if best else self.task.baseline:.3f}")

    def train_candidate(self, bar: Any) -> None:
        """Trains one candidate, from its beginning or from where it was stopped, to its end."""
        known, schedule = self.known, self.learner.schedule
        candidate = schedule.candidates[known.candidate]
        if known.step == 0:
            self.learner.load(self.first_state)
            known.tried += 1
        groups = self.learner.groups(candidate.rate)
        rates = [group["lr"] for group in groups]
        self._optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        if self._optimiser_state is not None:
            self._optimiser.load_state_dict(self._optimiser_state)
            self._optimiser_state = None
        while known.step < schedule.most_steps and known.waited < _PATIENCE and self._candidate_may_go_on():
            for group, rate in zip(self._optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * min(1.0, (known.step + 1) / _WARM_UP)
            self._step(candidate)
            if known.step % schedule.every == 0:
                self._look()
            self._tick(bar)
            if self.clock() - self._saved_at > _SAVE_EVERY:
                self.save()
        if self._losses:
            self._look()
        known.candidate += 1
        known.step = known.waited = 0
        known.own_best, known.candidate_seconds = -1.0, 0.0
        self._optimiser = None
        self._tick(bar)

    def _step(self, candidate: Candidate) -> None:
        assert self._optimiser is not None
        known = self.known
        rows = self.task.batch(known.candidate, known.step, self.learner.schedule.batch_size)
        loss = self.task.loss(self.learner, rows, candidate, known.step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"The loss of step {known.step} ({candidate}) is {float(loss)}.")
        loss.backward()
        weights = [value for group in self._optimiser.param_groups for value in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._losses.append(float(loss.detach()))
        known.step += 1

    def _look(self) -> None:
        known = self.known
        found = self.task.evaluate(self.learner, known.candidate, known.step, float(np.mean(self._losses)))
        self._losses = []
        known.evaluations.append(found)
        logger.info("candidate %d, step %d: nDCG@10 %.4f", found.candidate, found.step, found.ndcg)
        known.waited = 0 if found.ndcg > known.own_best else known.waited + 1
        known.own_best = max(known.own_best, found.ndcg)
        highest = known.best.ndcg if known.best else self.task.baseline
        if found.ndcg > highest and math.isfinite(found.ndcg):
            known.best, self.best_state = found, self.learner.state()

    def save(self) -> None:
        """Writes all that a continuation needs; a kill leaves the last whole file."""
        stored = {
            "known": dataclasses.asdict(self.known),
            "best": self.best_state if self.known.best else None,
            "now": self.learner.state(),
            "optimiser": self._optimiser.state_dict() if self._optimiser else None,
            "losses": self._losses,
        }
        with replacing(self.path) as file:
            torch.save(stored, file)
        self._saved_at = self.clock()

    def resume(self) -> None:
        """Goes on from the state file, if it belongs to this run."""
        if not self.path.is_file():
            return
        try:
            stored: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            fields = dict(stored["known"])
        except Exception as error:  # torch's kinds for a damaged file
            logger.warning("%s can't be read (%s): training begins anew.", self.path, error)
            return
        if fields["key"] != self.known.key:
            logger.warning("%s is of another corpus, other pairs or other settings: training begins anew.", self.path)
            return
        fields["evaluations"] = [Evaluation(**row) for row in fields["evaluations"]]
        fields["best"] = Evaluation(**fields["best"]) if fields["best"] else None
        self.known = Search(**fields)
        self.best_state = stored["best"] or self.first_state
        self._losses = stored["losses"]
        self._optimiser_state = stored["optimiser"]
        self.learner.load(stored["now"])
        logger.info("going on after %.0f s, candidate %d", self.known.seconds, self.known.candidate)
