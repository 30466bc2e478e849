"""Encoders with a thinker that has learned nothing, but moves questions as if it had."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel

from searchr3_embed import ReasoningEmbedder
from tests import tiny


def save_encoder(folder: Path, normalise: bool = True) -> Path:
    """A small random BERT with mean pooling, as sentence-transformers saves it."""
    torch.manual_seed(0)
    tokenizer = tiny.bert_tokenizer()
    tokenizer.model_max_length = 64
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    network = folder / "network"
    BertModel(config).save_pretrained(network)
    tokenizer.save_pretrained(network)
    first = Transformer(str(network), max_seq_length=64)
    last = [Normalize()] if normalise else []
    stock = SentenceTransformer(modules=[first, Pooling(32, pooling_mode="mean"), *last], device="cpu")
    stock.save_pretrained(str(folder / "encoder"))
    return folder / "encoder"


def save_joined(encoder: str | Path, folder: Path, scale: float = 0.05) -> Path:
    """An encoder with a thinker whose P holds small random numbers."""
    embedder = ReasoningEmbedder.from_encoder(encoder, device="cpu")
    torch.manual_seed(0)
    assert embedder.question_side is not None
    embedder.question_side.projection = torch.randn_like(embedder.question_side.projection) * scale
    embedder.save_pretrained(str(folder))
    return folder
