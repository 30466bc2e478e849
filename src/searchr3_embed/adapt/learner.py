"""What is trained: something that turns questions into vectors, with few or many weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One combination of what decides a training.

    Attributes:
        rate: Learning rate.
        stay: Weight of 1 - cosine to the encoder's vector.
    """

    rate: float
    stay: float

    def __str__(self) -> str:
        return f"rate {self.rate:g}, stay {self.stay:g}"


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a kind of learner is trained.

    Attributes:
        candidates: What is tried, the likeliest first.
        every: Steps between two evaluations.
        most_steps: Of one candidate.
        batch_size: Questions a step.
    """

    candidates: tuple[Candidate, ...]
    every: int
    most_steps: int
    batch_size: int = 128


class Learner(Protocol):
    """Something that is trained to turn questions into vectors.

    Attributes:
        schedule: How.
    """

    schedule: Schedule

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """The trained weights, in groups as an optimiser takes them."""

    def moved(self, rows: Sequence[int]) -> Tensor:
        """Vectors of some training questions, with a gradient; float32 of shape (questions, dimension)."""

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """Vectors of any questions, as the finished model gives them (but for rounding); the same shape."""

    def state(self) -> dict[str, Tensor]:
        """A copy of the trained weights."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to trained weights as they were."""

    def finished(self) -> ReasoningEmbedder:
        """The embedder with what was learned; the learner can't be trained further."""


def trained_state(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of weights, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in named.items()}


@torch.no_grad()
def load_state(named: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copies stored values into weights of the same names."""
    for name, value in named.items():
        value.copy_(state[name])
