"""The model that a run starts with: its weights, its tokenizer, its prompts, and the embed token where it has none."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from searchr3_embed.checkpoint import locate
from searchr3_embed.prompt_words import PROMPTS_FILE, Prompts

if TYPE_CHECKING:
    from trl import ModelConfig

logger = logging.getLogger(__name__)


def find_start(model_args: ModelConfig, what: str) -> tuple[Path, dict[str, Any]]:
    """The folder of the model that settings name, and how they say to load it.

    Args:
        model_args: The settings.
        what: What the model is, for the error.

    Raises:
        ValueError: They name no model.
    """
    if not model_args.model_name_or_path:
        raise ValueError(f"model_name_or_path must name {what}: a folder or a hub id.")
    folder = locate.find(model_args.model_name_or_path, revision=model_args.model_revision)
    dtype = getattr(torch, model_args.dtype or "float32")
    return folder, {"dtype": dtype, "attn_implementation": model_args.attn_implementation}


def load_start(
    folder: Path, prompts: Mapping[str, Any] | None, **kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Prompts]:
    """Loads the model to train, and adds the embed token where it has none.

    Args:
        folder: A causal language model: a plain one with a chat template, or a checkpoint of this package.
        prompts: Fields of ``Prompts``; None takes the checkpoint's own.
        **kwargs: Passed to ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        ValueError: There is no chat template, or there are no prompts.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)  # a folder here  # nosec B615
    if not tokenizer.chat_template:
        raise ValueError(
            f"{folder} has no chat template (chat_template.jinja): the turns can't be written. Take an instruction-"
            "tuned model, or add the template that it was trained with."
        )
    own = Prompts.load(folder) if (folder / PROMPTS_FILE).exists() else None
    words = given_prompts(prompts) if prompts is not None else own
    if words is None:
        raise ValueError(f"{folder} holds no {PROMPTS_FILE}; the settings must give prompts.")
    if own is not None and own != words:
        logger.warning("the settings' prompts replace those of %s", folder)
    model = AutoModelForCausalLM.from_pretrained(folder, **kwargs)  # a folder here  # nosec B615
    if words.embed_token not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [words.embed_token]})
        add_token(model, cast(int, tokenizer.convert_tokens_to_ids(words.embed_token)), tokenizer.eos_token_id)
    return model, tokenizer, words


def given_prompts(prompts: Any) -> Prompts:
    """The prompts that settings give.

    Raises:
        ValueError: They are no mapping, or hold an unknown name.
    """
    known = [field.name for field in dataclasses.fields(Prompts)]
    if not isinstance(prompts, Mapping) or set(prompts) - set(known):
        raise ValueError(f"prompts must map some of {known} to values, got {prompts!r}.")
    return Prompts(**prompts)


@torch.no_grad()
def add_token(model: Any, token: int, like: int | None) -> None:
    """Gives a new token a row in the embedding and one in the head, copied from another token.

    Args:
        model: Changed in place. Its vocabulary grows only where it has no spare row; Qwen's has some.
        token: Id of the new token.
        like: Id of the token that ends a turn; None takes the mean of all tokens.
    """
    if model.get_input_embeddings().weight.shape[0] <= token:
        model.resize_token_embeddings(token + 1, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = module.weight
        rows[token] = rows[:token].mean(dim=0) if like is None else rows[like]
