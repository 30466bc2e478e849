"""Trained weights into a folder that ReasoningEmbedder and stock libraries load."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.conversation import Conversation
from searchr3_embed.files import write_text
from training.shared.resume import writing
from training.shared.starting_model import load_start


@torch.no_grad()
def average(model: PreTrainedModel, start: PreTrainedModel, share: float) -> None:
    """Moves the weights towards those that training began with.

    It brings back what training on one mix of texts has forgotten about others (Wortsman et al. 2022,
    https://arxiv.org/abs/2109.01903).

    Args:
        model: Changed in place.
        start: The same architecture, before training.
        share: Weight of ``start``: 0 changes nothing, 1 gives ``start``.
    """
    for mine, other in zip(model.parameters(), start.parameters(), strict=True):
        mine.lerp_(other.to(mine.device, mine.dtype), share)


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    folder: Path,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes the trained model in the layout that ReasoningEmbedder and stock libraries load.

    Args:
        model: A causal language model without adapters.
        tokenizer: Its tokenizer, with the embed token and a chat template.
        conversation: The words of the turns and the longest turn.
        folder: Where to write.
        dtype: Of the saved weights.
    """
    # Trainers switch the cache off; generation in plain transformers needs it.
    model.config.use_cache = True
    with tempfile.TemporaryDirectory() as bare:
        model.save_pretrained(bare)
        tokenizer.model_max_length = conversation.max_length
        tokenizer.save_pretrained(bare)
        conversation.prompts.save(bare)
        embedder = ReasoningEmbedder(bare, device="cpu", model_kwargs={"dtype": dtype})
        embedder.save_pretrained(str(folder), create_model_card=False)


def export_result(
    trainer: transformers.Trainer,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    args: Any,
    start: Path,
    kwargs: Mapping[str, Any],
) -> Path:
    """Exports what a run has trained, with adapters merged, and the log of its losses.

    Args:
        trainer: After training.
        tokenizer: Of the model.
        conversation: See :func:`export`.
        args: Settings of either stage.
        start: The folder of the model that the run started with.
        kwargs: How that one is loaded.

    Returns:
        The folder of the exported model.
    """
    out = Path(str(args.output_dir))
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(trained, "merge_and_unload"):
        trained = trained.merge_and_unload()
    if args.average_with_start:
        before = load_start(start, dataclasses.asdict(conversation.prompts), **kwargs)[0]
        average(trained, before, args.average_with_start)
    target = out / "model"
    if trainer.is_world_process_zero():
        with writing():
            export(trained, tokenizer, conversation, target, getattr(torch, args.export_dtype))
            write_text(out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in trainer.state.log_history))
    return target
