"""A thinker as PEFT trains it: P as a module of the language model, low-rank differences around its layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from searchr3_embed.models import one_pass_bert
from searchr3_embed.question_side import ENCODER, QuestionSide

# What low-rank differences are trained of in a thinker that shares an encoder's layers.
SHARED_LAYERS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def with_projection(side: QuestionSide) -> Any:
    """The language model with P as a module of it, ``query_projection``."""
    model: Any = side.model
    dimension, hidden = side.projection.shape
    model.query_projection = nn.Linear(hidden, dimension, bias=False).to(model.device)
    with torch.no_grad():
        model.query_projection.weight.copy_(side.projection)
    return model


def choose_trained(config: Any, side: QuestionSide) -> None:
    """Fills in PEFT's settings: P is trained in full, and of a shared thinker its layers and new rows."""
    saved = ["query_projection"]
    if side.base == ENCODER:
        config.target_modules = SHARED_LAYERS
        saved.append("transform")
    config.modules_to_save = saved
    shared = range(_encoder_vocabulary(side), len(side.tokenizer))
    config.trainable_token_indices = [*shared] if side.base == ENCODER else [side.conversation.embed_token_id]


def _encoder_vocabulary(side: QuestionSide) -> int:
    """Tokens that the encoder itself knows: a thinker that shares its layers has two more."""
    return len(side.tokenizer) - 2


def trained_side(model: Any, side: QuestionSide, dtype: torch.dtype) -> QuestionSide:
    """The question side with the weights that a run has trained, adapters merged.

    Args:
        model: The trained model, in PEFT's wrapper or not.
        side: As the run began.
        dtype: Of the stored weights, but for P, which is float32.
    """
    projection = projection_weight(model.get_base_model() if isinstance(model, PeftModel) else model)
    differences: Mapping[str, torch.Tensor] | None = None
    if side.base == ENCODER:
        found = one_pass_bert.differences(model, _encoder_vocabulary(side))
        whole = one_pass_bert.combined(side.differences or {}, found)
        differences = {name: value.to(dtype) for name, value in whole.items()}
    merged: Any = model.merge_and_unload() if isinstance(model, PeftModel) else model
    if hasattr(merged, "query_projection"):
        del merged.query_projection
    merged.config.use_cache = True
    if side.base != ENCODER:
        merged.to(dtype)
    return dataclasses.replace(
        side, model=merged.eval(), projection=projection.float().clone(), differences=differences
    )


def projection_weight(model: Any) -> Tensor:
    """P as it is now, whether PEFT has wrapped its module or not; shape (dimension, hidden size)."""
    module = model.query_projection
    copies = getattr(module, "modules_to_save", None)
    if copies is not None:
        (adapter,) = module.active_adapters
        module = copies[adapter]
    return module.weight.detach()


def is_fresh(name: str) -> bool:
    """Whether a weight starts from nothing: P, and the head that an encoder lacks."""
    return "query_projection" in name or "predictions.transform" in name
