"""Where two batches chose different tokens: was it a tie? Shown by a pass of transformers alone, not by the engine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from searchr3_embed.engine import decode
from searchr3_embed.engine.head import lm_head
from searchr3_embed.question_side import ENCODER

if TYPE_CHECKING:
    from searchr3_embed import Reasoning, ReasoningEmbedder


@torch.inference_mode()
def next_logits(embedder: ReasoningEmbedder, prompt: Sequence[int], written: Sequence[int]) -> Tensor:
    """The logits of the token after ``written``, shape (vocabulary,); written tokens barred where a model does so."""
    side, model = embedder.question_side, embedder.causal_lm
    network: Any = model.base_model
    ids = torch.tensor([[*prompt, *written]], device=model.device)
    if side is not None and side.base == ENCODER:
        before = len(prompt) - 1
        cache = DynamicCache()
        encoder: Any = embedder[0].auto_model
        encoder(input_ids=ids[:, :before], attention_mask=torch.ones_like(ids[:, :before]), past_key_values=cache)
        states = network(
            input_ids=ids[:, before:], attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True
        ).last_hidden_state
    else:
        states = network(input_ids=ids, use_cache=False).last_hidden_state
    logits = lm_head(model)(states[:, -1]).float()[0]
    if embedder.conversation.prompts.distinct_tokens and written:
        logits[list(written)] = -torch.inf
    return logits


def gap_of_first_difference(embedder: ReasoningEmbedder, one: Reasoning, other: Reasoning) -> float | None:
    """How far apart two reasonings of one question were where they first differ.

    Args:
        embedder: What wrote them.
        one: In one batch.
        other: In another.

    Returns:
        The difference of the logits of the two tokens; None if they are the same reasoning, infinity if the two are
        not the likeliest tokens there.
    """
    end = object()
    pairs = itertools.zip_longest(one.reasoning_ids, other.reasoning_ids, fillvalue=end)
    place = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
    if place is None:
        if one.finish_reason == other.finish_reason:
            return None
        place = len(one.reasoning_ids)
    prompt = embedder.conversation.reasoning_ids([one.text])[0]
    logits = next_logits(embedder, prompt, one.reasoning_ids[:place])
    chosen = [_chosen(embedder, trace, place, logits) for trace in (one, other)]
    likeliest = set(logits.topk(2).indices.tolist())
    if None in chosen or set(chosen) - likeliest:
        return float("inf")
    return abs(float(logits[chosen[0]] - logits[chosen[1]]))


def _chosen(embedder: ReasoningEmbedder, trace: Reasoning, place: int, logits: Tensor) -> int | None:
    """The token that a reasoning chose at a place; None if its budget was used up there."""
    talk = embedder.conversation
    if place < len(trace.reasoning_ids):
        return trace.reasoning_ids[place]
    if trace.finish_reason != "length":
        return talk.embed_token_id
    if place >= talk.check_budget(None):
        return None
    stops = sorted(set(decode.stop_token_ids(embedder.causal_lm)) - {talk.embed_token_id})
    return max(stops, key=lambda token: float(logits[token]), default=None)
