"""The forward pass of a BERT decoder with nothing in it that is not asked for, on a CPU.

The stock pass computes the last layer for every token, though only the states at which a row ends are read: there,
keys and values are needed everywhere, and all else at those places only. For a model of seven layers that is an eighth
of all work. It also computes every layer for the padding of shorter rows, where here only attention sees rows side by
side: all else is given the tokens that there are. Beside that, activations and residual sums are part of the matrix
products where oneDNN computes them.

The weights are the model's own, and so are the numbers, up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.activations import GELUActivation
from transformers.models.bert import modeling_bert as bert

from searchr3_embed.cpu_kernels import OneDnnLinear, product

# What a model may consist of; a subclass or a wrapper may compute something else.
_KNOWN = {
    *(bert.BertModel, bert.BertEmbeddings, bert.BertEncoder, bert.BertLayer, bert.BertAttention),
    *(bert.BertSelfAttention, bert.BertSelfOutput, bert.BertIntermediate, bert.BertOutput, GELUActivation),
    *(nn.Linear, OneDnnLinear, nn.LayerNorm, nn.Embedding, nn.Dropout, nn.ModuleList),
}
# Where the hooks are from with which transformers collects hidden states.
_COLLECTOR = "transformers.utils.output_capturing"


def fits(model: PreTrainedModel) -> bool:
    """Whether :func:`states` computes what the model's own forward pass would.

    It is for plain BERT decoders in evaluation mode on a CPU: not for adapters, hooks, quantised layers, autocast,
    or layers of other classes, which the stock pass serves.
    """
    body: Any = model.base_model
    return (
        type(body) is bert.BertModel
        and body.pooler is None
        and body.config.is_decoder
        and body.device.type == "cpu"
        and not body.training
        and not torch.is_autocast_enabled("cpu")
        and all(type(module) in _KNOWN and not _is_hooked(module) for module in body.modules())
    )


def _is_hooked(module: nn.Module) -> bool:
    """Whether anything but transformers' own collector listens in.

    The first call that asks for hidden states leaves its hooks behind, and they do nothing in other calls: a model
    must not compute differently after it, or a training that goes on would differ from one that was never stopped.
    """
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(getattr(hook, "__module__", None) != _COLLECTOR for hook in hooks)


def states(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor | None,
    positions: Tensor | None,
    cache: Cache | None,
    wanted: Tensor | None,
    real: Tensor | None = None,
) -> Tensor:
    """Last hidden states at the places asked for.

    Args:
        model: A model that :func:`fits`.
        ids: Token ids, int64 of shape (rows, tokens).
        mask: Added to the attention scores, shape (rows, 1, tokens, keys); None is causal, and without earlier keys.
        positions: Int64 of shape (rows, tokens); None counts from 0.
        cache: Takes the keys and values of all tokens and gives those to look at.
        wanted: Places among the tokens, int64 of shape (rows, any number); None asks for all.
        real: Which tokens are no padding, bool of shape (rows, tokens), for which nothing but keys and values without
            meaning is computed; at least one, and all that are wanted. None says that all are, and so does not asking
            for places.

    Returns:
        Shape (rows, places, hidden size).
    """
    body: Any = model.base_model
    words = body.embeddings
    if positions is None:
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
    known = ids
    numbers = None
    if real is not None and wanted is not None:
        # Number of each token among the real ones, in the shape of the rows; padding takes that of a neighbour.
        numbers = (real.flatten().cumsum(0) - 1).clamp_(min=0).view(real.shape)
        known, positions = ids[real], positions.expand(ids.shape)[real]
    hidden = (
        words.word_embeddings(known) + words.token_type_embeddings.weight[0] + words.position_embeddings(positions)
    )
    hidden = words.LayerNorm(hidden)
    *layers, last = body.encoder.layer
    for number, layer in enumerate(layers):
        hidden = _layer(layer, number, hidden, hidden, mask, cache, numbers, real)
    if wanted is None:
        return _layer(last, len(layers), hidden, hidden, mask, cache)
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    if mask is None:
        # A place looks at itself and at what stands before it.
        hides = torch.arange(ids.shape[1], device=ids.device) > wanted[:, :, None]
        mask = torch.zeros(hides.shape, dtype=hidden.dtype).masked_fill_(hides, torch.finfo(hidden.dtype).min)[:, None]
    else:
        mask = mask.expand(len(ids), -1, -1, -1)[rows, 0, wanted][:, None]
    asked = hidden[rows, wanted] if numbers is None else hidden[numbers[rows, wanted]]
    return _layer(last, len(layers), hidden, asked, mask, cache, numbers)


def _layer(
    layer: bert.BertLayer,
    number: int,
    seen: Tensor,
    asked: Tensor,
    mask: Tensor | None,
    cache: Cache | None,
    numbers: Tensor | None = None,
    real: Tensor | None = None,
) -> Tensor:
    """One layer at the places ``asked``, whose tokens look at ``seen`` and at what the cache holds.

    Args:
        layer: The layer.
        number: Its number.
        seen: States of shape (rows, tokens, hidden size); with ``numbers``, of the real tokens alone, one behind the
            other, (real tokens, hidden size).
        asked: States of shape (rows, places, hidden size); with ``real``, as ``seen``.
        mask: As for :func:`states`, for the places asked.
        cache: As there.
        numbers: Of each token in ``seen``, int64 of shape (rows, tokens).
        real: Which tokens ``asked`` holds, bool of shape (rows, tokens).

    Returns:
        States in the shape of ``asked``.
    """
    attention: Any = layer.attention
    inner = attention.self

    def heads(projection: nn.Linear, tokens: Tensor, numbers: Tensor | None) -> Tensor:
        projected = product(projection, tokens)
        if numbers is not None:
            projected = projected.index_select(0, numbers.flatten()).view(*numbers.shape, -1)
        shape = (*projected.shape[:2], inner.num_attention_heads, inner.attention_head_size)
        return projected.view(shape).transpose(1, 2)

    keys, values = (heads(projection, seen, numbers) for projection in (inner.key, inner.value))
    if cache is not None:
        keys, values = cache.update(keys, values, number)
    query = heads(inner.query, asked, None if real is None else numbers)
    found = F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=mask is None, scale=inner.scaling
    )
    found = found.transpose(1, 2).flatten(2)
    found = found if real is None else found[real]
    asked = attention.output.LayerNorm(product(attention.output.dense, found, add=asked))
    wide = product(layer.intermediate.dense, asked, gelu=True)
    return layer.output.LayerNorm(product(layer.output.dense, wide, add=asked))
