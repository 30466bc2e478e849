"""The thinker of a run: from an embedder into a model that TRL trains, and back into a folder that loads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from trl import ModelConfig, get_peft_config

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.adapt.trainable_thinker import choose_trained, is_fresh, trained_side, with_projection
from searchr3_embed.checkpoint import THINKER_FOLDER, locate
from searchr3_embed.checkpoint.thinker import has_thinker
from searchr3_embed.files import write_text
from searchr3_embed.question_side import ENCODER, QuestionSide
from training.data.records import Record
from training.evaluate.models import teacher_source
from training.shared import starting_model
from training.shared.resume import deciding_settings, fingerprint, writing

# Settings that would do nothing here.
_SINGLE_MODELS_ONLY = (
    "teacher", "average_with_start", "distil_weight", "relation_weight", "distil_reasoning_weight", "memory_weight",
    "hold_weight", "environment",
)  # fmt: skip


def open_embedder(args: Any, model_args: ModelConfig) -> ReasoningEmbedder:
    """The encoder and the thinker that settings name: a checkpoint to go on from, or P zero.

    Raises:
        ValueError: They can't be found or joined, or a setting is for single models.
    """
    if model_args.model_name_or_path:
        raise ValueError(
            f"model_name_or_path ({model_args.model_name_or_path!r}) is for single models; beside an encoder, thinker "
            "names the language model."
        )
    if given := [name for name in _SINGLE_MODELS_ONLY if getattr(args, name, None)]:
        raise ValueError(f"{', '.join(given)}: for single models only, leave it out beside an encoder.")
    encoder = teacher_source() if args.encoder == "teacher" else args.encoder
    if has_thinker(locate.find(encoder)):
        if args.thinker or getattr(args, "prompts", None):
            raise ValueError(
                f"{encoder!r} has a thinker already; leave out --thinker and prompts to train it further."
            )
        return ReasoningEmbedder(encoder, on_truncate="ignore", device=str(args.device))
    return ReasoningEmbedder.from_encoder(
        encoder, args.thinker, prompts=given_prompts(args), on_truncate="ignore", device=str(args.device)
    )


def given_prompts(args: Any) -> Mapping[str, Any] | None:
    """The thinker's words, where settings give any; only stage 1 has the setting.

    Raises:
        ValueError: They are no mapping, or hold an unknown name.
    """
    prompts = getattr(args, "prompts", None)
    if prompts is not None:
        starting_model.given_prompts(prompts)
        if not args.thinker:
            raise ValueError("prompts are for a thinker of its own; one that shares the encoder's layers has none.")
    return prompts


def check_lengths(side: QuestionSide, query_length: int, written: int) -> None:
    """Checks that a question and what is written about it fit into the thinker's positions.

    Args:
        side: The question side.
        query_length: Most tokens of a question.
        written: Most tokens of a reasoning, the embed token included.

    Raises:
        ValueError: They do not.
    """
    positions = int(getattr(side.model.config, "max_position_embeddings", 0) or 0)
    longest = len(side.conversation.reasoning_turns([[0] * query_length])[0]) + written
    if positions and longest > positions:
        raise ValueError(
            f"The thinker has {positions} positions, but query_length {query_length} and {written} written tokens "
            f"make turns of {longest}; lower query_length."
        )


def prepare(embedder: ReasoningEmbedder, model_args: ModelConfig) -> tuple[Any, Any]:
    """The language model with P as a module of it, and PEFT's settings, which train P in full.

    Raises:
        ValueError: A thinker that shares an encoder's layers is to be trained without adapters.
    """
    side = embedder.question_side
    assert side is not None
    model = with_projection(side)
    config: Any = get_peft_config(model_args)
    if side.base == ENCODER and config is None:
        raise ValueError(
            "A thinker that shares the encoder's layers is trained by low-rank differences: set use_peft and lora_r."
        )
    if config is not None:
        choose_trained(config, side)
    return model, config


def export_thinker(trainer: Any, embedder: ReasoningEmbedder, args: Any) -> Path:
    """Writes encoder and trained thinker to ``OUTPUT_DIR/model``, and the log of the losses beside it."""
    out = Path(str(args.output_dir))
    target = out / "model"
    if trainer.is_world_process_zero():
        side = embedder.question_side
        assert side is not None
        model = trainer.accelerator.unwrap_model(trainer.model)
        embedder.question_side = trained_side(model, side, getattr(torch, args.export_dtype))
        with writing():
            embedder.save_pretrained(str(target), create_model_card=False)
            write_text(out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in trainer.state.log_history))
    return target


class ProjectionRate:
    """Mixed into a trainer: what starts from nothing, P and the head of a shared thinker, has a rate of its own.

    Attributes:
        projection_rate: The rate.
    """

    projection_rate: float

    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The optimiser of the settings, with two groups of weights."""
        if self.optimizer is None:
            named = [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]
            fresh = [value for name, value in named if is_fresh(name)]
            others = [value for name, value in named if not is_fresh(name)]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            decay = self.args.weight_decay
            self.optimizer = kind(
                [
                    {"params": others, "weight_decay": decay},
                    {"params": fresh, "weight_decay": decay, "lr": self.projection_rate},
                ],
                **options,
            )
        return cast(torch.optim.Optimizer, self.optimizer)


def thinker_settings(args: Any, model_args: ModelConfig, records: Iterable[Record]) -> dict[str, Any]:
    """All that decides the weights of a run, see :func:`training.shared.resume.deciding_settings`."""
    folder = locate.find(teacher_source() if args.encoder == "teacher" else args.encoder)
    thinker = locate.find(args.thinker) if args.thinker else folder / THINKER_FOLDER
    return {
        **deciding_settings(args, model_args, folder, records),
        "base_of_thinker": fingerprint(thinker) if thinker.is_dir() else None,
    }
