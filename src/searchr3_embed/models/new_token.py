"""A token that a language model does not know yet."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


def ensure(model: Any, tokenizer: PreTrainedTokenizerBase, token: str) -> None:
    """Adds a special token to a tokenizer and a model that lack it; its row begins as that of the end of a turn.

    Args:
        model: Changed in place.
        tokenizer: Changed in place.
        token: The token.
    """
    if token not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [token]})
        add_row(model, int(tokenizer.convert_tokens_to_ids(token)), tokenizer.eos_token_id)  # type: ignore[arg-type]


@torch.no_grad()
def add_row(model: Any, token: int, like: int | None) -> None:
    """Gives a new token rows in the embedding and in the head; they begin as those of another token.

    Args:
        model: Changed in place; grows only where it has no spare row, as Qwen's padded vocabulary has.
        token: Id of the new token.
        like: Id of the token that ends a turn; None takes the mean of all tokens.
    """
    if model.get_input_embeddings().weight.shape[0] <= token:
        model.resize_token_embeddings(token + 1, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = module.weight
        rows[token] = rows[:token].mean(dim=0) if like is None else rows[like]
