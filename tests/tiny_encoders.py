"""Small random sentence-transformers encoders, thinkers beside them, and a P that moves vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.models import one_pass_bert
from searchr3_embed.question_side import ENCODER, QuestionSide
from tests import tiny

# Not the hidden size of the small causal language model, so that P is no square.
HIDDEN = 48
PROMPTS = {"query": "find: ", "document": "page: "}


def save_bert(
    folder: Path,
    seed: int = 0,
    normalise: bool = True,
    max_length: int = 48,
    *,
    pooling: str = "mean",
    dimension: int | None = None,
    prompts: dict[str, str] | None = None,
    hidden: int = HIDDEN,
) -> Path:
    """A BERT that reads in both directions; as it is, of the kind of all-MiniLM-L6-v2.

    Args:
        folder: Where it is saved.
        seed: Of its weights.
        normalise: Whether its vectors have length 1.
        max_length: Tokens that it reads.
        pooling: ``"mean"`` or ``"cls"``.
        dimension: Of its vectors, by a Dense module; None takes the hidden size.
        prompts: Its own, by name.
        hidden: Its hidden size.
    """
    tokenizer = bert_tokenizer(max_length)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=96,
        initializer_range=0.3,
    )
    plain = folder.with_name(folder.name + "-plain")
    BertModel(config).eval().save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    modules: list[Any] = [Transformer(str(plain), max_seq_length=max_length), Pooling(hidden, pooling_mode=pooling)]
    modules += [Dense(hidden, dimension)] if dimension else []
    modules += [Normalize()] if normalise else []
    return _save(folder, modules, prompts)


def bert_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """That of the small BERTs, putting [CLS] and [SEP] around a text."""
    tokenizer = tiny.bert_tokenizer()
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.chat_template = None
    tokenizer.model_max_length = max_length
    return tokenizer


def save_last_token(folder: Path) -> Path:
    """A causal language model whose last token is the vector, as Qwen3-Embedding."""
    plain = folder.with_name(folder.name + "-plain")
    model, tokenizer = tiny.qwen2()
    model.model.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=48)
    return _save(folder, [transformer, Pooling(32, pooling_mode="lasttoken"), Normalize()], None)


def teach(embedder: ReasoningEmbedder, seed: int = 3, size: float = 0.5) -> ReasoningEmbedder:
    """Gives a thinker what training would: a P that is not zero, and differences from the encoder's layers.

    Some of its reasonings end at once, some later, some with the budget.
    """
    side = embedder.question_side
    assert side is not None
    draw = torch.Generator().manual_seed(seed)
    if side.base == ENCODER:
        _differ(side, draw)
    side.projection = torch.randn(side.projection.shape, generator=draw) * size
    return embedder


def _differ(side: QuestionSide, draw: torch.Generator) -> None:
    model: Any = side.model
    hidden, rows = model.config.hidden_size, model.get_input_embeddings().weight
    new = torch.randn(2, hidden, generator=draw)
    new[1] *= 2.5  # the embed token: the likelier its row, the sooner a reasoning ends
    weight = "bert.encoder.layer.0.attention.self.query.weight"
    side.differences = {
        weight + one_pass_bert.FACTORS[0]: torch.randn(4, hidden, generator=draw) * 0.3,
        weight + one_pass_bert.FACTORS[1]: torch.randn(hidden, 4, generator=draw) * 0.3,
        "bert.embeddings.word_embeddings.weight" + one_pass_bert.NEW_ROWS: new,
        "cls.predictions.bias": torch.randn(len(rows), generator=draw),
    }
    one_pass_bert.apply_differences(model, side.differences)


def save_taught(encoder: Path, thinker: Path | None, folder: Path) -> Path:
    """A checkpoint of an encoder and a thinker that moves vectors."""
    embedder = ReasoningEmbedder.from_encoder(encoder, thinker, device="cpu", on_truncate="ignore")
    teach(embedder).save_pretrained(str(folder))
    return folder


def save_with_thinker(folder: Path, encoder: Path, ends: float, seed: int = 1) -> Path:
    """An encoder with a thinker that shares its layers and has learned something.

    Args:
        folder: Where to write.
        encoder: What :func:`save_bert` wrote.
        ends: What the token that closes a reasoning has added to its logit.
        seed: Of the random differences.
    """
    embedder = ReasoningEmbedder.from_encoder(str(encoder), device="cpu")
    side = embedder.question_side
    assert side is not None
    hidden = side.model.config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    # Through weights that training trains too: PEFT forgets the bias of a tied head.
    rows = torch.randn(2, hidden, generator=generator) * 0.3
    ending = rows[side.conversation.embed_token_id - len(side.tokenizer)]
    layer = "bert.encoder.layer.1.output.dense.weight"
    side.differences = {
        "bert.embeddings.word_embeddings.weight.new_rows": rows,
        "cls.predictions.transform.LayerNorm.bias": ends * ending / ending.square().sum(),
        f"{layer}.lora_a": torch.randn(3, 64, generator=generator) * 0.1,
        f"{layer}.lora_b": torch.randn(hidden, 3, generator=generator) * 0.1,
    }
    side.projection = torch.randn(side.projection.shape, generator=generator) * 0.05
    embedder.save_pretrained(str(folder), create_model_card=False)
    return folder


def _save(folder: Path, modules: list[Any], prompts: dict[str, str] | None) -> Path:
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save_pretrained(
        str(folder), create_model_card=False
    )
    return folder
