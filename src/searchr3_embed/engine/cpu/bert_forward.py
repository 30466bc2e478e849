"""A forward pass for BERT decoders on a CPU that computes only what is needed.

Three things are saved against the stock pass. In the last layer, only the states at the end of each row are read: so
keys and values are computed for every token, everything else only where it is read. With seven layers that is an
eighth of all work. Padding is skipped: outside attention, the tokens of all rows stand in one line, without it. And
activations and residual sums are computed within the matrix products, where oneDNN can do that.

The weights are the model's own; the results are those of its own pass, up to rounding.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.activations import GELUActivation
from transformers.models.bert import modeling_bert as bert

from searchr3_embed.engine.cpu.kernels import product, rows_computed

# What a model may consist of; a subclass or a wrapper may compute something else.
_KNOWN = {
    *(bert.BertModel, bert.BertEmbeddings, bert.BertEncoder, bert.BertLayer, bert.BertAttention),
    *(bert.BertSelfAttention, bert.BertSelfOutput, bert.BertIntermediate, bert.BertOutput, GELUActivation),
    *(nn.Linear, nn.LayerNorm, nn.Embedding, nn.Dropout, nn.ModuleList),
}
_POOLER = {bert.BertPooler, nn.Tanh}
# Where the hooks are from with which transformers collects hidden states.
_COLLECTOR = "transformers.utils.output_capturing"


def fits(model: PreTrainedModel) -> bool:
    """Whether :func:`states` computes what a decoder's own forward pass would.

    It is for plain BERT decoders in evaluation mode on a CPU: not for adapters, hooks, compiled or quantised
    layers, autocast, or layers of other classes, which the stock pass serves.
    """
    body: Any = model.base_model
    return type(body) is bert.BertModel and body.pooler is None and body.config.is_decoder and _is_plain(model, _KNOWN)


def fits_encoder(model: PreTrainedModel) -> bool:
    """The same for a BERT that reads in both directions, given a mask that hides its padding and nothing else.

    The pooler is not asked, so it does not matter whether there is one.
    """
    body: Any = model.base_model
    return type(body) is bert.BertModel and not body.config.is_decoder and _is_plain(model, _KNOWN | _POOLER)


def _is_plain(model: PreTrainedModel, known: set[type]) -> bool:
    body: Any = model.base_model
    return (
        not _is_compiled(model)
        and body.device.type == "cpu"
        and not body.training
        and not torch.is_autocast_enabled("cpu")
        and getattr(body.config, "position_embedding_type", "absolute") == "absolute"
        and _all_plain(body, known)
    )


def _all_plain(body: nn.Module, known: set[type]) -> bool:
    """Whether all modules are of known classes, without hooks; it is asked at every call, so it is a quick walk."""
    waiting = [body]
    while waiting:
        module = waiting.pop()
        # What torch.compile returns is of a class of its own.
        if type(module) not in known or module._compiled_call_impl is not None:
            return False
        if (module._forward_hooks or module._forward_pre_hooks) and _is_hooked(module):
            return False
        waiting += [part for part in module._modules.values() if part is not None]
    return True


def _is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` made a module, or ``compile`` was called on it: then it wants to be called itself."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def _is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks, other than those with which transformers collects hidden states.

    A call that asks for hidden states leaves such hooks behind, and they do nothing in later calls. If they counted,
    a model would be computed differently after such a call, and a resumed training would differ from one that ran
    through.
    """
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(getattr(hook, "__module__", None) != _COLLECTOR for hook in hooks)


@dataclasses.dataclass(frozen=True)
class _Line:
    """The tokens of several rows in one line, one row after the other: everything but attention works on it.

    Attributes:
        shape: Number of rows, and number of tokens in each, padding included.
        length: Number of places in the line. It may exceed the number of tokens, so that the matrix products have few
            different sizes; what stands in the places at the end has no meaning.
        tokens: Which token stands at each place, numbered through all rows, int64 of shape (length,); None: all tokens
            in their order.
        places: The place of each token, int64 of shape (rows times tokens,); for padding, that of some other token.
    """

    shape: tuple[int, int]
    length: int
    tokens: Tensor | None = None
    places: Tensor | None = None

    @classmethod
    def of(cls, shape: tuple[int, int], layer: nn.Linear, real: Tensor | None = None) -> _Line:
        """The line of all tokens, or only of the real ones; its length suits products with layers like ``layer``."""
        if real is None:
            return cls(shape, rows_computed(layer, shape[0] * shape[1]))
        tokens = real.flatten().nonzero().squeeze(1)
        length = rows_computed(layer, len(tokens))
        places = (real.flatten().cumsum(0) - 1).clamp_(min=0)
        return cls(shape, length, F.pad(tokens, (0, length - len(tokens))), places)

    def join(self, rows: Tensor) -> Tensor:
        """From shape (rows, tokens, size) to (length, size)."""
        joined = rows.flatten(0, 1)
        if self.tokens is not None:
            return joined.index_select(0, self.tokens)
        missing = self.length - len(joined)
        return F.pad(joined, (0, 0, 0, missing)) if missing else joined

    def split(self, line: Tensor) -> Tensor:
        """From shape (length, size) to (rows, tokens, size)."""
        rows = line[: math.prod(self.shape)] if self.places is None else line.index_select(0, self.places)
        return rows.view(*self.shape, line.shape[-1])


def states(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor | None,
    positions: Tensor | None,
    cache: Cache | None,
    wanted: Tensor | None,
    real: Tensor | None = None,
) -> Tensor:
    """Last hidden states at the wanted places.

    Args:
        model: A model that :func:`fits`.
        ids: Token ids, int64 of shape (rows, tokens).
        mask: Added to the attention scores, shape (rows, 1, tokens, keys); None: each token sees its row up to itself,
            and there are no earlier keys.
        positions: Int64 of shape (rows, tokens); None counts from 0.
        cache: Stores the keys and values of all tokens and returns those that may be seen; None stores nothing.
        wanted: Which tokens of each row, int64 of shape (rows, any number); None: all.
        real: Which tokens are not padding, bool of shape (rows, tokens); at least one, and all wanted ones. For the
            others, only keys and values are stored, and they have no meaning. None: all are real.

    Returns:
        Shape (rows, wanted tokens, hidden size); at padding, the numbers have no meaning.
    """
    body: Any = model.base_model
    words = body.embeddings
    *layers, last = body.encoder.layer
    if positions is None:
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
    line = _Line.of((ids.shape[0], ids.shape[1]), last.output.dense, real)
    hidden = words.word_embeddings(ids) + words.token_type_embeddings.weight[0] + words.position_embeddings(positions)
    hidden = words.LayerNorm(line.join(hidden))
    for number, layer in enumerate(layers):
        hidden = _layer(layer, number, hidden, line, hidden, line, mask, cache)
    if wanted is None:
        return line.split(_layer(last, len(layers), hidden, line, hidden, line, mask, cache))
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    if mask is None:
        # A token sees itself and what stands before it.
        hides = torch.arange(ids.shape[1], device=ids.device) > wanted[:, :, None]
        mask = torch.zeros(hides.shape, dtype=hidden.dtype).masked_fill_(hides, torch.finfo(hidden.dtype).min)[:, None]
    else:
        mask = mask.expand(len(ids), -1, -1, -1)[rows, 0, wanted][:, None]
    token = rows * ids.shape[1] + wanted
    asked_line = _Line.of((wanted.shape[0], wanted.shape[1]), last.output.dense)
    asked = asked_line.join(hidden[token if line.places is None else line.places[token]])
    return asked_line.split(_layer(last, len(layers), hidden, line, asked, asked_line, mask, cache))


def _layer(
    layer: bert.BertLayer,
    number: int,
    seen: Tensor,
    seen_line: _Line,
    asked: Tensor,
    asked_line: _Line,
    mask: Tensor | None,
    cache: Cache | None,
) -> Tensor:
    """Computes one layer for the tokens ``asked``, which see the tokens ``seen`` and what the cache holds.

    Args:
        layer: The layer.
        number: Its number, for the cache.
        seen: States of the tokens that give keys and values, shape (tokens, hidden size).
        seen_line: Their order.
        asked: States of the tokens that are computed, shape (tokens, hidden size).
        asked_line: Their order.
        mask: As for :func:`states`, for the tokens ``asked``.
        cache: As for :func:`states`.

    Returns:
        The layer's output, in the shape of ``asked``.
    """
    attention: Any = layer.attention
    inner = attention.self

    def heads(projection: nn.Linear, tokens: Tensor, line: _Line) -> Tensor:
        projected = line.split(product(projection, tokens))
        return projected.unflatten(2, (inner.num_attention_heads, inner.attention_head_size)).transpose(1, 2)

    keys, values = (heads(projection, seen, seen_line) for projection in (inner.key, inner.value))
    if cache is not None:
        keys, values = cache.update(keys, values, number)
    query = heads(inner.query, asked, asked_line)
    found = F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=mask is None, scale=inner.scaling
    )
    found = asked_line.join(found.transpose(1, 2).flatten(2))
    asked = attention.output.LayerNorm(product(attention.output.dense, found, add=asked))
    wide = product(layer.intermediate.dense, asked, gelu=True)
    return layer.output.LayerNorm(product(layer.output.dense, wide, add=asked))
