"""Log-probabilities of what the policy wrote, as the engine that wrote it has them.

What TRL computes from its own fused language-modelling head is right only for models with rotary positions whose head
is one matrix. It pads on the left, which gives models with absolute positions wrong places, and it leaves out the
transform of BERT's head. For those models, and where tokens that are written already are barred (``distinct_tokens``),
the log-probabilities are computed here, so that the policy that is trained is the one that the engine samples from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from searchr3_embed.adapt import branches


def fused_head_is_right(model: PreTrainedModel) -> bool:
    """Whether TRL's fused head gives this model's log-probabilities, see the module docstring."""
    rotary = getattr(model.config, "rope_parameters", None) is not None
    return rotary and getattr(model, "lm_head", None) is model.get_output_embeddings()


def log_probabilities(
    model: Any,
    head: Callable[[Tensor], Tensor],
    ids: Tensor,
    mask: Tensor,
    kept: int,
    temperature: float,
    *,
    distinct: bool,
    tokens: int | None = None,
    entropy_gradient: bool = False,
    encoder: PreTrainedModel | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the last ``kept`` tokens, and the entropies of the distributions they were chosen from.

    A prompt that several rows share is read once. The head is asked for the tokens that were written, not for padding.

    Args:
        model: A causal language model, in its wrappers or not.
        head: Its language-modelling head.
        ids: Prompts padded on the left, completions padded on the right, shape (rows, tokens).
        mask: 1 at tokens, 0 at padding, same shape.
        kept: Length of the padded completions.
        temperature: Divides the logits.
        distinct: Whether a token that a completion holds already can't come again.
        tokens: Padded tokens of one forward pass, rows of like length together; None takes all rows at once.
        entropy_gradient: Whether the entropies get a gradient; it takes memory.
        encoder: Beside which the model thinks, if it works on the encoder's own pass.

    Returns:
        Two float32 tensors of shape (rows, kept), 0 at padding, and the state at the last token of each row, shape
        (rows, dimension): the embedding, where that token is the embed token.
    """
    length = ids.shape[1] - kept
    prompts = [row[here].tolist() for row, here in zip(ids[:, :length], mask[:, :length].bool(), strict=True)]
    answers = [row[here].tolist() for row, here in zip(ids[:, length:], mask[:, length:].bool(), strict=True)]
    states, before, last = branches.states(model, prompts, answers, tokens, ids.device, encoder)
    completion, written = ids[:, length:], mask[:, length:].bool()
    rows, places = written.nonzero(as_tuple=True)
    logits = head(states[before]).float() / temperature
    if distinct:
        earlier = torch.arange(kept, device=ids.device) < places[:, None]
        token, place = earlier.nonzero(as_tuple=True)
        barred = torch.zeros_like(logits, dtype=torch.bool)
        barred[token, completion[rows[token], place]] = True
        # Finite, for the entropy multiplies it by 0.
        logits = logits.masked_fill(barred, torch.finfo(logits.dtype).min)
    odds = logits.log_softmax(dim=-1)
    nothing = odds.new_zeros(written.shape)
    chosen = nothing.index_put((rows, places), odds.gather(1, completion[written][:, None]).squeeze(1))
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = nothing.index_put((rows, places), -(odds.exp() * odds).sum(dim=-1))
    return chosen, entropy, states[last]
