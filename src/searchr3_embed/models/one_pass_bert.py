"""A thinker made from a BERT encoder: the same weights as a language model, and small trained differences on top.

The encoder's layers read the question once more, in both directions, with trained low-rank differences (LoRA, Hu et
al. 2021, https://arxiv.org/abs/2106.09685); what is written behind it runs through the same layers, causally. Only the
differences are stored: everything else is the encoder's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers import BertLMHeadModel, PreTrainedModel

# Names in a file of differences: the factors of a low-rank one, and rows behind the encoder's own vocabulary.
FACTORS = (".lora_a", ".lora_b")
NEW_ROWS = ".new_rows"


def language_model(encoder: PreTrainedModel, vocabulary: int, seed: int = 0) -> BertLMHeadModel:
    """The encoder's weights as a language model that has still to learn to write.

    Args:
        encoder: A BERT encoder; it is not changed, and shares no memory with the result.
        vocabulary: Tokens that the tokenizer knows; rows that the encoder lacks begin as that of its last token.
        seed: Not drawn upon unless the encoder lacks weights; kept so that what is drawn repeats.

    Returns:
        A float32 model in evaluation mode. Its head begins as the identity, so it prefers tokens like those just read.

    Raises:
        ValueError: The encoder is no BERT, or is a decoder.
    """
    config: Any = copy.deepcopy(encoder.config)
    if config.model_type != "bert" or config.is_decoder:
        raise ValueError(
            f"A thinker that shares an encoder's layers needs a bidirectional BERT; this encoder is of type "
            f"{config.model_type!r}{' and a decoder' if getattr(config, 'is_decoder', False) else ''}. Name a causal "
            "language model as the thinker instead."
        )
    config.is_decoder = config.use_cache = True
    # Without dropout a run can be repeated to the bit.
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.tie_word_embeddings = True
    config.architectures = ["BertLMHeadModel"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertLMHeadModel(config)
    # An adapter that somebody put on the encoder stays behind, as its pooler does.
    weights = {name.replace(".base_layer.", "."): value for name, value in encoder.state_dict().items()}
    own = cast(Any, model.bert).state_dict().keys()
    cast(Any, model.bert).load_state_dict(
        {name: value.float().cpu() for name, value in weights.items() if name in own}
    )
    with torch.no_grad():
        transform = model.cls.predictions.transform
        torch.nn.init.eye_(transform.dense.weight)
        for parameter in (transform.dense.bias, transform.LayerNorm.bias, model.cls.predictions.bias):
            torch.nn.init.zeros_(parameter)
        torch.nn.init.ones_(transform.LayerNorm.weight)
    known = config.vocab_size
    if vocabulary > known:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
        with torch.no_grad():
            rows = cast(Tensor, model.get_input_embeddings().weight)
            rows[known:] = rows[config.pad_token_id or 0]
    model.tie_weights()
    return model.eval()


def share_words(encoder: PreTrainedModel, model: BertLMHeadModel) -> None:
    """Lets an encoder's word embeddings be the beginning of the thinker's, where they are equal: half its memory.

    Both keep tensors of their own, so that each can be saved, moved and converted alone; what is moved or converted is
    no longer shared.

    Args:
        encoder: Its embeddings are put there; their values stay.
        model: The thinker, with as many rows or more.
    """
    own = cast(Tensor, encoder.get_input_embeddings().weight)
    beginning = cast(Tensor, model.get_input_embeddings().weight).data[: len(own)]
    if own.dtype == beginning.dtype and own.device == beginning.device and torch.equal(own, beginning):
        own.data = beginning


def differences(model: Any, encoder_vocabulary: int) -> dict[str, Tensor]:
    """What training changed, from a model with PEFT's adapters on it.

    Args:
        model: The ``PeftModel`` around what :func:`language_model` made.
        encoder_vocabulary: Rows of the encoder's own vocabulary.

    Returns:
        Low-rank factors by the name of the weight that they belong to, other trained tensors whole, and the new rows
        of the vocabulary.
    """
    found: dict[str, Tensor] = {}
    base = model.get_base_model()
    for name, module in base.named_modules():
        if hasattr(module, "lora_A") and len(module.lora_A):
            (adapter,) = module.active_adapters
            found[f"{name}.weight{FACTORS[0]}"] = module.lora_A[adapter].weight.detach().clone()
            # The scale is part of the second factor, so that whoever reads the file needs no settings.
            found[f"{name}.weight{FACTORS[1]}"] = module.lora_B[adapter].weight.detach() * module.scaling[adapter]
    merged = copy.deepcopy(model).merge_and_unload()
    for name, value in merged.cls.predictions.transform.state_dict().items():
        found[f"cls.predictions.transform.{name}"] = value.detach().clone()
    # The bias of the last layer is not among them: PEFT leaves it out of a tied head, so nobody trains it.
    name = "bert.embeddings.word_embeddings.weight"
    found[name + NEW_ROWS] = merged.get_parameter(name)[encoder_vocabulary:].detach().clone()
    return found


def combined(earlier: Mapping[str, Tensor], later: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Differences that were trained on top of others: their ranks add up, what is stored whole is the later one."""
    result = {**earlier, **later}
    for name in earlier.keys() & later.keys():
        if name.endswith(FACTORS):
            axis = 0 if name.endswith(FACTORS[0]) else 1
            result[name] = torch.cat([earlier[name].float(), later[name].float().cpu()], dim=axis)
    return result


@torch.no_grad()
def apply_differences(model: BertLMHeadModel, tensors: Mapping[str, Tensor]) -> None:
    """Adds stored differences to what :func:`language_model` made; the inverse of :func:`differences`.

    Raises:
        ValueError: A tensor belongs to no weight of the model, lacks its other factor, or has another shape.
    """
    weights = dict(model.named_parameters())
    for name, value in tensors.items():
        kind = next((ending for ending in (*FACTORS, NEW_ROWS) if name.endswith(ending)), "")
        target = weights.get(name.removesuffix(kind))
        if target is None:
            raise ValueError(f"the thinker's differences hold {name!r}, which the encoder has no weight for.")
        if kind == FACTORS[1]:
            continue
        change = value.float()
        if kind == FACTORS[0]:
            second = tensors.get(name.removesuffix(kind) + FACTORS[1])
            if second is None or second.shape[-1] != len(change):
                raise ValueError(
                    f"the thinker's differences lack the second factor of {name!r}, or it has another rank."
                )
            change = second.float() @ change
        part = target[len(target) - len(change) :] if kind == NEW_ROWS else target
        if part.shape != change.shape:
            raise ValueError(
                f"the thinker's {name!r} is for a weight of shape {tuple(change.shape)}; this encoder's is "
                f"{tuple(part.shape)}."
            )
        part.copy_(part + change if kind == FACTORS[0] else change)
    model.tie_weights()
