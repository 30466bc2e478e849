"""What an evaluation is asked for, and one cell of its table: one model on one set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class EvaluationError(ValueError):
    """A request that cannot be met; the message is one sentence for the user."""


@dataclass(frozen=True)
class Settings:
    """What else decides the scores: the files of one run must agree in it."""

    split: str = "test"
    small: bool = False
    max_reasoning_tokens: int | None = None
    dtype: str = "auto"  # of the weights; "auto" leaves it to the models, which take float32 on a CPU


@dataclass
class Cell:
    """One model on one set. Times are wall-clock milliseconds, tokenising included, loading excluded."""

    model: str
    set: str
    queries: int
    documents: int
    scores: dict[str, float]  # metric -> mean over the queries
    per_query: dict[str, dict[str, float]]  # query id -> metric -> score
    ms_per_query: float
    ms_per_document: float
    reasoning_tokens_per_query: float | None = None
    embed_token_share: float | None = None  # share of queries whose reasoning ended with the token, not the budget
    reasonings: dict[str, dict[str, Any]] = field(default_factory=dict)
