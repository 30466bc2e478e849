"""The settings of stage 2, each with its default and where that comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from trl import GRPOConfig, ModelConfig

from training.rl.corpus.environment import EnvironmentSettings
from training.rl.reward import RewardSettings
from training.shared.settings import RunArguments, check_above_zero, check_range, parse_settings

Settings = TypeVar("Settings")


@dataclasses.dataclass
class RLArguments(RunArguments, GRPOConfig):
    """Settings of stage 2. "paper" marks what its sources state, "ours" what they leave open."""

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "sources", "environment", "reward"]

    corpus: list[str] | None = dataclasses.field(
        default=None,
        metadata={
            "help": "BEIR folders whose documents join those of the sources in the corpus that rollouts are ranked "
            "in (ours)."
        },
    )
    document_length: int = dataclasses.field(default=256, metadata={"help": "Most tokens of a document (ours)."})
    rollout_batch_size: int = dataclasses.field(
        default=128, metadata={"help": "Rollouts written at once; bounds memory, does not change results (ours)."}
    )
    environment: dict | str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "See training.rl.corpus.environment.EnvironmentSettings (selective refresh: paper; how: ours)."
        },
    )
    reward: dict | str | None = dataclasses.field(
        default=None, metadata={"help": "See training.rl.reward.RewardSettings (scaled DCG: paper; its form: ours)."}
    )
    contrast_weight: float = dataclasses.field(
        default=0.0,
        metadata={
            "help": "Weight of InfoNCE between queries, direct and after their rollouts, and documents of the batch: "
            "it keeps the embeddings good while reasoning is trained (ours)."
        },
    )
    memory_weight: float = dataclasses.field(
        default=0.0,
        metadata={
            "help": "Weight of InfoNCE between the embedding that each rollout leads to and documents of the "
            "environment: a positive and the hardest negatives of the whole corpus, which the reward's ranking finds "
            "anyway (ours)."
        },
    )
    memory_negatives: int = dataclasses.field(
        default=16, metadata={"help": "Hardest negatives of a rollout in that loss (ours)."}
    )
    distil_weight: float = dataclasses.field(
        default=0.0,
        metadata={
            "help": "Weight of 1 - cos(embedding that a rollout leads to, teacher's embedding of the query). A model "
            "that reads the question twice can come closer to a bidirectional teacher than its direct embedding does "
            "(ours)."
        },
    )
    hold_weight: float = dataclasses.field(
        default=0.0,
        metadata={
            "help": "Weight of the distance of direct embeddings (queries, and a document for each) to those of the "
            "stage-1 model, so that learning to think does not move the documents (ours)."
        },
    )
    tau: float = dataclasses.field(default=0.05, metadata={"help": "Temperature of both InfoNCE losses (ours)."})
    num_generations: int = dataclasses.field(
        default=8, metadata={"help": "Rollouts of a query, G (group: paper; number: ours)."}
    )
    max_completion_length: int = dataclasses.field(
        default=257, metadata={"help": "Most tokens of a rollout, the embed token included (ours)."}
    )
    temperature: float = dataclasses.field(default=1.0, metadata={"help": "Rollouts are sampled at it (ours)."})
    epsilon: float = dataclasses.field(default=0.2, metadata={"help": "Clipping of the ratio (ours)."})
    beta: float = dataclasses.field(
        default=0.01, metadata={"help": "Weight of the KL to the stage-1 model; 0 leaves it out (ours)."}
    )
    loss_type: str = dataclasses.field(
        default="grpo", metadata={"help": "grpo (paper), dapo, dr_grpo, bnpo, cispo, ...; see TRL's GRPOConfig."}
    )
    disable_dropout: bool = dataclasses.field(
        default=True, metadata={"help": "Dropout would make the policy differ from the one that was sampled (ours)."}
    )

    def __post_init__(self) -> None:
        # TRL would write rollouts for a dev set; we measure retrieval instead, which needs none.
        self.num_generations_eval = self.num_generations_eval or 1
        super().__post_init__()
        self.remove_unused_columns = False
        # The queries are in the order of training already, for all epochs, so that a resumed run finds its place.
        self.shuffle_dataset = False
        self.check_shared()
        check_range(self, ("document_length", "rollout_batch_size", "memory_negatives"), at_least=1)
        check_range(self, ("max_completion_length",), at_least=2)
        check_above_zero(self, ("temperature", "tau"))
        check_range(self, [f"{one}_weight" for one in ("contrast", "memory", "distil", "hold")], at_least=0)
        if self.distil_weight > 0 and not self.teacher:
            raise ValueError("distil_weight needs a teacher.")
        changed = {"top_p": (1.0,), "top_k": (0, None), "min_p": (None,), "repetition_penalty": (1.0,)}
        for name, accepted in changed.items():
            if getattr(self, name) not in accepted:
                raise ValueError(
                    f"{name} must keep its default, got {getattr(self, name)!r}: rollouts are sampled from the policy "
                    "itself, whose log-probabilities the loss needs."
                )
        updates = int(cast(int, self.steps_per_generation)) * self.num_iterations
        if self.save_strategy == "steps" and int(self.save_steps) * self.gradient_accumulation_steps % updates:
            raise ValueError(
                f"save_steps ({self.save_steps}) times gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps}) must be a multiple of steps_per_generation times "
                f"num_iterations ({updates}): a run that goes on from a checkpoint begins with new rollouts."
            )
        self.environment_settings = _settings(EnvironmentSettings, "environment", self.environment)
        self.reward_settings = _settings(RewardSettings, "reward", self.reward)


def _settings(kind: type[Settings], name: str, given: Any) -> Settings:
    """One group of settings, with an error that names what is accepted."""
    known = [field.name for field in dataclasses.fields(cast(Any, kind))]
    if given is not None and (not isinstance(given, Mapping) or set(given) - set(known)):
        raise ValueError(f"{name} must map some of {known} to values, got {given!r}.")
    try:
        return kind(**(given or {}))
    except TypeError as error:  # a word where a number belongs
        raise ValueError(f"{name} holds a value of the wrong type: {error}; got {given!r}.") from error


def parse(description: str, argv: Sequence[str] | None = None) -> tuple[RLArguments, ModelConfig]:
    """Settings of stage 2, see :func:`training.shared.settings.parse_settings`."""
    return parse_settings(RLArguments, "python -m training.rl", description, argv)
