"""The settings of stage 1, each with its default and where that comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

from trl import ModelConfig, SFTConfig, TrlParser

from training.sft.trainer import LossSettings


@dataclasses.dataclass
class SFTArguments(SFTConfig):
    """Settings of stage 1. "paper" marks what its sources state, "ours" what they leave open."""

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "sources", "prompts", "document_lengths"]

    data: str | None = dataclasses.field(
        default=None, metadata={"help": "Folder of the sources that are given by name alone (ours)."}
    )
    sources: dict | str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Source -> how often it is seen in an epoch (1.5: every record once, half of them twice). A "
            "source is the name of a JSONL file in --data, a path, a BEIR folder or hub:NAME. Which sets: paper "
            "(TriviaQA, MS MARCO, CodeSearchNet, MIRACL, S2ORC, synthetic triples); the weights: ours."
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
    prompts: dict | str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "The words of the two turns, see searchr3_embed.prompts.Prompts; default: the base's (ours)."
        },
    )
    query_length: int = dataclasses.field(default=64, metadata={"help": "Most tokens of a query (ours)."})
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
    teacher: str | None = dataclasses.field(
        default=None,
        metadata={"help": "A sentence-transformers model to stay close to; 'teacher' is all-MiniLM-L6-v2 (ours)."},
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
    average_with_start: float = dataclasses.field(
        default=0.0, metadata={"help": "Share of the base's weights in the exported model (ours)."}
    )
    export_dtype: str = dataclasses.field(
        default="bfloat16",
        metadata={"help": "Of the exported weights (ours).", "choices": ["float32", "float16", "bfloat16"]},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.remove_unused_columns = False
        self.dataset_kwargs = {"skip_prepare_dataset": True}
        lengths = cast(Mapping[Any, float], self.document_lengths or {512: 1.0})
        if not isinstance(lengths, Mapping):
            raise ValueError(f"document_lengths must map numbers of tokens to shares of steps, got {lengths!r}.")
        self.document_lengths = {int(length): float(share) for length, share in lengths.items()}
        if not self.sources or not isinstance(self.sources, dict):
            raise ValueError(f"sources must map each source to its weight, got {self.sources!r}.")
        for name in ("tau", "query_length", "groups_per_step", "tokens_per_forward", "held_out_one_in"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)!r}.")
        weights = ("language", "kl", "contrast", "triplet", "distil", "relation", "distil_reasoning")
        for name in (*(f"{one}_weight" for one in weights), "negatives", "own_temperature", "held_out_limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)!r}.")
        for name in ("own_reasoning", "average_with_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)!r}.")
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
    """Settings from ``--config FILE`` and the command line, which wins.

    Raises:
        ValueError: A setting is unknown or out of range.
    """
    parser = TrlParser(cast(Any, (SFTArguments, ModelConfig)), prog="python -m training.sft", description=description)
    given = list(argv) if argv is not None else None
    return cast(tuple[SFTArguments, ModelConfig], parser.parse_args_and_config(given))
