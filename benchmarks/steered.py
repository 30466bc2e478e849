"""A random Qwen2 whose rows end after 5 to 60 tokens: long reasoning without long training.

The end is steered by the weights alone, so it is the same for everyone who runs the model and costs nothing: the first
token is a counter that the prompt chooses, every counter is followed by the next one, and the last by the embed token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from searchr3_embed.conversation import Conversation
from searchr3_embed.engine import forward
from searchr3_embed.prompt_words import Prompts

SHORTEST, LONGEST = 5, 60
_SYSTEM_WORDS = "Think about what a passage that answers the question would talk about, and write it down. "
_PAD, _TURN = "<|endoftext|>", "<|turn|>"
_CHAT_TEMPLATE = "{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}"


@dataclasses.dataclass(frozen=True)
class Shape:
    """Size of the model.

    Attributes:
        hidden: Hidden size.
        layers: Number of layers.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        inner: Size of the inner layer of the MLP.
        vocabulary: Rows of the embedding and of the head; the text needs 260 of them.
    """

    hidden: int = 384
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    inner: int = 1024
    vocabulary: int = 16000


QWEN_1_5B = Shape(hidden=1536, layers=28, heads=12, kv_heads=2, inner=8960, vocabulary=151936)


def save(
    folder: Path, texts: Sequence[str], shape: Shape | None = None, system_tokens: int = 120, dtype: str = "float32"
) -> Path:
    """Writes the checkpoint; the same arguments always give the same weights.

    Args:
        folder: Where to write.
        texts: Queries like those to come. The first 56 get lengths of their own, others that of the nearest of them.
        shape: Size of the model; the default has about 20 million parameters.
        system_tokens: Length of the system prompt.
        dtype: Of the saved weights.

    Returns:
        ``folder``.
    """
    shape = shape or Shape()
    tokenizer = _tokenizer()
    words = (_SYSTEM_WORDS * (1 + system_tokens // len(_SYSTEM_WORDS)))[:system_tokens]
    prompts = Prompts(reasoning_system=words, max_reasoning_tokens=LONGEST + 4)
    torch.manual_seed(0)
    embed_id: Any = tokenizer.convert_tokens_to_ids(prompts.embed_token)
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.inner,
        max_position_embeddings=1024,
        initializer_range=0.05,
        tie_word_embeddings=False,
        eos_token_id=embed_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    conversation = Conversation(tokenizer, prompts, max_length=512, position_limit=1024, on_truncate="ignore")
    turns = conversation.reasoning_ids(texts[: LONGEST - SHORTEST + 1])
    _steer(model, embed_id, turns)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prompts.save(folder)
    return folder


@torch.no_grad()
def _steer(model: Any, embed_id: int, turns: Sequence[Sequence[int]]) -> None:
    """Sets the head so that counters follow one another, after a first one that the prompt chooses."""
    embeddings: Any = model.get_input_embeddings().weight
    embeddings.normal_(0, 1.0)
    directions = torch.nn.functional.normalize(embeddings.float(), dim=1)
    head: Any = model.get_output_embeddings().weight
    # The states where the answer begins are nearly the same for all prompts. What sets them apart chooses: each first
    # counter stands for one prompt, and other prompts take that of the nearest.
    states = forward.embed(model, turns)
    common = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
    differences = states - states.mean(dim=0)

    def beside(direction: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(direction - (direction @ common) * common, dim=-1)

    head.zero_()
    # Behind the bytes, which are text.
    counters = [1000 + number for number in range(LONGEST)]
    for number, token in enumerate(counters):
        following = counters[number + 1] if number + 1 < LONGEST else embed_id
        head[following] += 8 * beside(directions[token])
    for token, difference in zip(counters, differences, strict=False):
        head[token] += 4 * common + 8 * beside(difference)


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: what transformers makes of any tokenizer of a Qwen2, which it rebuilds as byte-level BPE."""
    tokens = [_PAD, _TURN, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=_PAD, model_max_length=512)
    tokenizer.add_special_tokens({"additional_special_tokens": [_TURN, Prompts().embed_token]})
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer
