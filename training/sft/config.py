"""The settings of stage 1, each with its default and where that comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

from trl import ModelConfig, SFTConfig

from training.sft.training_step import LossSettings
from training.shared.settings import RunArguments, check_above_zero, check_range, parse_settings


@dataclasses.dataclass
class SFTArguments(RunArguments, SFTConfig):
    """Settings of stage 1. "paper" marks what its sources state, "ours" what they leave open."""

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "sources", "prompts", "document_lengths"]

    prompts: dict | str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "The words of the two turns, see searchr3_embed.prompt_words.Prompts; default: the base's (ours)."
        },
    )
    document_lengths: dict | str | None = dataclasses.field(
        default=None,
        metadata={"help": "Most tokens of a document -> share of steps with that limit (ours). Default: {512: 1}."},
    )
    groups_per_step: int = dataclasses.field(
        default=2,
        metadata={"help": "A step mixes records of so many sources; fewer make harder in-batch negatives (ours)."},
    )
    negatives: int = dataclasses.field(
        default=1, metadata={"help": "Explicit hard negatives of a record in one step (paper: used; number ours)."}
    )
    language_weight: float = dataclasses.field(
        default=1.0, metadata={"help": "Weight of L_SFT, cross-entropy of the answers (term: paper; weight: ours)."}
    )
    teach_direct: bool = dataclasses.field(
        default=True,
        metadata={"help": "Whether L_SFT and L_KL cover the fixed direct answer (paper), or only reasoning (ours)."},
    )
    kl_weight: float = dataclasses.field(
        default=0.1, metadata={"help": "Weight of L_KL to the frozen base, same tokens (term: paper; weight: ours)."}
    )
    contrast_weight: float = dataclasses.field(
        default=1.0, metadata={"help": "Weight of L_InfoNCE (term: paper; weight: ours)."}
    )
    triplet_weight: float = dataclasses.field(
        default=1.0, metadata={"help": "Weight of L_triplet (term: paper; weight: ours)."}
    )
    tau: float = dataclasses.field(
        default=0.05, metadata={"help": "Temperature of InfoNCE (paper: set, value unknown; ours 0.05)."}
    )
    margin: float = dataclasses.field(
        default=0.15, metadata={"help": "theta of the triplet loss, in cosine (paper: set, value unknown; ours 0.15)."}
    )
    distil_weight: float = dataclasses.field(
        default=0.0, metadata={"help": "Weight of 1 - cos(direct embedding, teacher's embedding) (ours)."}
    )
    relation_weight: float = dataclasses.field(
        default=0.0,
        metadata={
            "help": "Weight of the divergence between student and teacher in which texts of a batch each text is near "
            "to; the teacher may have another dimension (ours)."
        },
    )
    distil_reasoning_weight: float = dataclasses.field(
        default=0.0, metadata={"help": "The same for the reasoning embedding and the teacher's of the query (ours)."}
    )
    teach_empty: bool = dataclasses.field(
        default=True,
        metadata={"help": "Whether an empty reasoning target is taught; else such records have none (ours)."},
    )
    own_reasoning: float = dataclasses.field(
        default=1.0,
        metadata={
            "help": "Share of the records with a reasoning target whose query is also embedded after reasoning that "
            "the model wrote itself, as at inference (ours)."
        },
    )
    own_temperature: float = dataclasses.field(
        default=0.0, metadata={"help": "Temperature of that reasoning; 0 takes the likeliest token (ours)."}
    )
    given_reasoning: float = dataclasses.field(
        default=0.0,
        metadata={
            "help": "Beside an encoder: share of the records whose query is also embedded after words that are not "
            "the thinker's, from another text that answers it, so that an agent's words are no news; records with one "
            "positive have none (ours)."
        },
    )
    given_length: int = dataclasses.field(default=64, metadata={"help": "Most tokens of such words (ours)."})
    target_contrast: bool = dataclasses.field(
        default=True, metadata={"help": "Whether queries are also embedded after the reasoning target (ours)."}
    )
    tokens_per_forward: int = dataclasses.field(
        default=16384, metadata={"help": "Padded tokens of one forward pass; bounds the memory of a step (ours)."}
    )
    grad_cache: bool = dataclasses.field(
        default=True,
        metadata={
            "help": "Keep only embeddings of the batch and compute each chunk twice, so that memory does not grow "
            "with the batch; false is a third faster where the whole batch fits (ours)."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.remove_unused_columns = False
        self.dataset_kwargs = {"skip_prepare_dataset": True}
        lengths = cast(Mapping[Any, float], self.document_lengths or {512: 1.0})
        if not isinstance(lengths, Mapping):
            raise ValueError(f"document_lengths must map numbers of tokens to shares of steps, got {lengths!r}.")
        self.document_lengths = {int(length): float(share) for length, share in lengths.items()}
        self.check_shared()
        check_above_zero(self, ("tau",))
        check_range(self, ("groups_per_step", "tokens_per_forward", "given_length"), at_least=1)
        weights = ("language", "kl", "contrast", "triplet", "distil", "relation", "distil_reasoning")
        check_range(
            self,
            (
                *(f"{one}_weight" for one in weights),
                "negatives",
                "own_temperature",
                "stay_weight",
                "projection_warm_up",
            ),
            at_least=0,
        )
        check_range(self, ("own_reasoning", "given_reasoning"), at_least=0, at_most=1)
        if self.given_reasoning and not self.encoder:
            raise ValueError("given_reasoning is for a thinker beside an encoder: name the encoder, or leave it out.")
        if self.distilled and not self.teacher:
            raise ValueError("distil_weight, relation_weight and distil_reasoning_weight need a teacher.")

    @property
    def distilled(self) -> bool:
        """Whether any term needs the teacher."""
        return max(self.distil_weight, self.relation_weight, self.distil_reasoning_weight) > 0

    @property
    def loss(self) -> LossSettings:
        """The part that decides the loss."""
        return LossSettings(
            language=self.language_weight,
            divergence=self.kl_weight,
            contrast=self.contrast_weight,
            triplet=self.triplet_weight,
            distil=self.distil_weight,
            relation=self.relation_weight,
            distil_reasoning=self.distil_reasoning_weight,
            temperature=self.tau,
            margin=self.margin,
            own_reasoning=self.own_reasoning,
            target_contrast=self.target_contrast,
            teach_direct=self.teach_direct,
            own_temperature=self.own_temperature,
        )


def parse(description: str, argv: Sequence[str] | None = None) -> tuple[SFTArguments, ModelConfig]:
    """Settings of stage 1, see :func:`training.shared.settings.parse_settings`."""
    return parse_settings(SFTArguments, "python -m training.sft", description, argv)
