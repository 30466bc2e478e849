"""Trained weights into a folder that ReasoningEmbedder and stock libraries load."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.conversation import Conversation


@torch.no_grad()
def average(model: PreTrainedModel, start: PreTrainedModel, share: float) -> None:
    """Moves the weights towards those that training began with.

    What further training on one mix of texts forgets of another comes back (Wortsman et al. 2022,
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
    # Trainers switch it off; whoever generates with the folder in plain transformers needs it.
    model.config.use_cache = True
    with tempfile.TemporaryDirectory() as bare:
        model.save_pretrained(bare)
        tokenizer.model_max_length = conversation.max_length
        tokenizer.save_pretrained(bare)
        conversation.prompts.save(bare)
        embedder = ReasoningEmbedder(bare, device="cpu", model_kwargs={"dtype": dtype})
        embedder.save_pretrained(str(folder), create_model_card=False)
