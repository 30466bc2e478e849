"""The settings that both stages have, and how settings are read from a YAML file and the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from trl import ModelConfig, TrlParser

Arguments = TypeVar("Arguments")


@dataclasses.dataclass
class RunArguments:
    """Settings of both stages, mixed into TRL's. "paper" marks what its sources state, "ours" what they leave open."""

    data: str | None = dataclasses.field(
        default=None, metadata={"help": "Folder of the sources that are given by name alone (ours)."}
    )
    sources: dict | str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Source -> how often it is seen in an epoch (1.5: every record once, half of them twice). A "
            "source is the name of a JSONL file in --data, a path, a BEIR folder or hub:NAME. Which sets: paper "
            "(TriviaQA, MS MARCO, CodeSearchNet, MIRACL, S2ORC, synthetic triples; not which belong to which stage); "
            "the weights: ours."
        },
    )
    exclude: list[str] | None = dataclasses.field(
        default=None,
        metadata={"help": "BEIR folders whose queries must not be trained on, nor close copies of them (ours)."},
    )
    dev: list[str] | None = dataclasses.field(
        default=None, metadata={"help": "BEIR folders whose dev split chooses the best checkpoint (ours)."}
    )
    held_out_one_in: int = dataclasses.field(
        default=60, metadata={"help": "One in so many training records is kept apart to choose by (ours)."}
    )
    held_out_limit: int = dataclasses.field(
        default=60, metadata={"help": "At most so many records a source are kept apart; 0 keeps none (ours)."}
    )
    query_length: int = dataclasses.field(default=64, metadata={"help": "Most tokens of a query (ours)."})
    teacher: str | None = dataclasses.field(
        default=None,
        metadata={"help": "A sentence-transformers model to stay close to; 'teacher' is all-MiniLM-L6-v2 (ours)."},
    )
    average_with_start: float = dataclasses.field(
        default=0.0, metadata={"help": "Share of the weights that the run started with in the exported model (ours)."}
    )
    export_dtype: str = dataclasses.field(
        default="bfloat16",
        metadata={"help": "Of the exported weights (ours).", "choices": ["float32", "float16", "bfloat16"]},
    )

    encoder: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "An encoder that nobody touches, beside which a thinker is trained: a sentence-transformers "
            "folder or hub id, 'teacher' for all-MiniLM-L6-v2, or a checkpoint with a thinker to train further. "
            "Without it a single model is trained, as in the paper (ours)."
        },
    )
    thinker: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "The thinker beside the encoder: a causal language model. Default: one that shares the encoder's "
            "layers, which must be a BERT (ours)."
        },
    )
    vectors: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Folder of the encoder's vectors, which runs can share; default: in output_dir (ours)."},
    )
    stay_weight: float = dataclasses.field(
        default=10.0,
        metadata={"help": "Beside an encoder: weight of 1 - cosine to its vector, for other domains' sake (ours)."},
    )
    projection_learning_rate: float = dataclasses.field(
        default=2e-3,
        metadata={"help": "Beside an encoder: learning rate of P, and of a head that starts from nothing (ours)."},
    )
    projection_warm_up: int = dataclasses.field(
        default=5,
        metadata={"help": "Beside an encoder: steps in which only P and the head are trained (ours)."},
    )

    def check_shared(self) -> None:
        """Checks the settings above.

        Raises:
            ValueError: One is out of range.
        """
        if not self.sources or not isinstance(self.sources, dict):
            raise ValueError(f"sources must map each source to its weight, got {self.sources!r}.")
        check_range(self, ("query_length", "held_out_one_in"), at_least=1)
        check_range(self, ("held_out_limit",), at_least=0)
        check_range(self, ("average_with_start",), at_least=0, at_most=1)
        check_range(self, ("stay_weight", "projection_warm_up"), at_least=0)
        check_above_zero(self, ("projection_learning_rate",))


def check_range(settings: Any, names: Sequence[str], *, at_least: float, at_most: float | None = None) -> None:
    """Checks numbers among settings.

    Raises:
        ValueError: One is out of range, or not a number.
    """
    expected = f"at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
    for name in names:
        value = getattr(settings, name)
        if not (value >= at_least and (at_most is None or value <= at_most)):
            raise ValueError(f"{name} must be {expected}, got {value!r}.")


def check_above_zero(settings: Any, names: Sequence[str]) -> None:
    """Checks numbers among settings.

    Raises:
        ValueError: One is not above 0.
    """
    for name in names:
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(settings, name)!r}.")


def parse_settings(
    kind: type[Arguments], program: str, description: str, argv: Sequence[str] | None
) -> tuple[Arguments, ModelConfig]:
    """Settings from ``--config FILE`` and from the command line, which wins.

    Raises:
        ValueError: A setting is unknown or out of range.
    """
    parser = TrlParser(cast(Any, (kind, ModelConfig)), prog=program, description=description)
    given = list(argv) if argv is not None else None
    return cast(tuple[Arguments, ModelConfig], parser.parse_args_and_config(given))
