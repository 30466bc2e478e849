"""The paper's kind of checkpoint: one causal language model embeds both documents and questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor, nn

from searchr3_embed import thinking
from searchr3_embed.checkpoint.load import Checkpoint
from searchr3_embed.conversation import Conversation
from searchr3_embed.engine import decode, forward
from searchr3_embed.engine.cpu.kernels import fastest_products
from searchr3_embed.engine.interpreter_exit import computing
from searchr3_embed.given_reasoning import given_in
from searchr3_embed.kinds.behind_pooling import check_finite, finish
from searchr3_embed.models.causal_transformer import CausalTransformer

Progress = Callable[[int], object]
OnToken = Callable[[int, int], object]


def modules(checkpoint: Checkpoint) -> list[nn.Module]:
    """The stock modules (Transformer, last-token Pooling, Normalize) over the checkpoint's language model."""
    tokenizer = checkpoint.conversation.direct_turn_tokenizer(checkpoint.tokenizer)
    transformer = CausalTransformer(checkpoint.model, str(checkpoint.folder), tokenizer)
    return [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken"), Normalize()]


@computing()
def embed(
    pipeline: SentenceTransformer,
    talk: Conversation,
    texts: Sequence[str],
    prompt: str,
    batch_size: int,
    progress: Progress,
) -> Tensor:
    """The embeddings of direct turns, as the pipeline's modules give them, shape (texts, dimension)."""
    turns = talk.direct_ids([prompt + text for text in texts])
    with fastest_products():
        states = forward.embed(_causal_lm(pipeline), turns, batch_size=batch_size, progress=progress)
    return check_finite(finish(pipeline, states), texts)


@computing()
def think(
    pipeline: SentenceTransformer,
    talk: Conversation,
    texts: Sequence[str],
    prompt: str,
    batch_size: int,
    max_reasoning_tokens: int | None,
    progress: Progress,
    continue_reasoning: bool = False,
    on_token: OnToken | None = None,
) -> tuple[Tensor, list[list[int]], list[decode.Generation]]:
    """The embeddings after thinking, and for each text the prompt as token ids and what was written or given."""
    model = _causal_lm(pipeline)
    with fastest_products():
        prompts, generations = thinking.think(
            model,
            decode.stop_token_ids(model),
            talk,
            [prompt + text for text in texts],
            given_in(texts),
            max_reasoning_tokens,
            continue_reasoning=continue_reasoning,
            batch_size=batch_size,
            progress=progress,
            on_token=on_token,
        )
    vectors = finish(pipeline, torch.stack([generation.state for generation in generations]))
    return check_finite(vectors, texts), prompts, generations


def finish_reason(generation: decode.Generation) -> str:
    """Why a reasoning ended, see :class:`searchr3_embed.reasoning_trace.Reasoning`."""
    if generation.read_only:
        return "given"
    return "embed_token" if generation.finished else "length"


def _causal_lm(pipeline: SentenceTransformer) -> Any:
    """The language model that computes.

    Raises:
        ValueError: The pipeline shows another network than that, which would not be asked.
    """
    first: Any = pipeline[0]
    model: Any = first.causal_lm
    body = model.base_model
    # The stock class's ``auto_model`` is a property: what is set by this name stands beside it.
    shown = isinstance(first, CausalTransformer) and first.model is body and "auto_model" not in first._modules
    if not shown or (model._compiled_call_impl is not None and model is not body):
        raise ValueError(
            "The network of a single model can't be exchanged, as for what torch.compile returns, and its head can't "
            "be compiled: neither would be computed with. Call compile() of the embedder instead, which compiles its "
            "layers in place."
        )
    return model
