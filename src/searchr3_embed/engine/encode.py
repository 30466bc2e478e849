"""Sentence vectors of a plain BERT encoder on a CPU, faster than its own forward pass and equal up to rounding.

Rows are batched by tokens instead of by number, and padding is left out of all but attention. Every other encoder, and
every other device, is served by sentence-transformers itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from searchr3_embed.engine.batching import chunks, tokens_per_forward
from searchr3_embed.engine.cpu import bert_forward
from searchr3_embed.engine.interpreter_exit import stopping_place

PoolingMode = Literal["mean", "cls"]


def fits(model: PreTrainedModel) -> bool:
    """Whether :func:`encode` computes what the model's own forward pass would: see ``bert_forward.fits_encoder``."""
    return bert_forward.fits_encoder(model)


@torch.no_grad()
def encode(
    model: PreTrainedModel,
    turns: Sequence[Sequence[int]],
    pooling: PoolingMode,
    *,
    batch_size: int = 32,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """The pooled last hidden states of each text.

    Args:
        model: A bidirectional encoder that :func:`fits`.
        turns: Token ids as the encoder's tokenizer gives them, one non-empty list a text.
        pooling: ``"mean"`` of the states of all tokens, or the state of the first one, ``"cls"``.
        batch_size: Most texts in one forward pass; passes are also cut by tokens.
        progress: Called with the number of texts done since the last call.

    Returns:
        Float32 tensor of shape (texts, hidden size), in the order of ``turns``.
    """
    vectors = torch.empty(len(turns), model.config.hidden_size, dtype=torch.float32)
    for rows in chunks(turns, batch_size, tokens_per_forward(model.device)):
        stopping_place()
        vectors[rows] = _pooled(model, [turns[row] for row in rows], pooling).float()
        if progress is not None:
            progress(len(rows))
    return vectors


def padding_mask(real: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to attention scores that hides padding and nothing else.

    Args:
        real: Which tokens are no padding, bool of shape (rows, tokens).
        dtype: Of the attention scores.

    Returns:
        Shape (rows, 1, tokens, tokens).
    """
    mask = torch.zeros(real.shape, dtype=dtype, device=real.device).masked_fill_(~real, torch.finfo(dtype).min)
    return mask[:, None, None].expand(-1, -1, real.shape[1], -1)


def _pooled(model: Any, turns: Sequence[Sequence[int]], pooling: PoolingMode) -> Tensor:
    ids = pad_sequence([torch.tensor(list(turn)) for turn in turns], batch_first=True)
    lengths = torch.tensor([len(turn) for turn in turns])
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    mask = padding_mask(real, model.dtype)
    padded = None if bool(real.all()) else real
    if pooling == "cls":
        first = torch.zeros(len(turns), 1, dtype=torch.long)
        return bert_forward.states(model, ids, mask, None, None, first, padded)[:, 0]
    states = bert_forward.states(model, ids, mask, None, None, None, padded)
    return (states * real[:, :, None]).sum(dim=1) / lengths[:, None]
