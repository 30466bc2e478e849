"""What the texts are tried on: an embedder, both integrations over the same checkpoint, and small random models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langchain_searchr3 import SearchR3Embeddings
from llama_index.embeddings.searchr3 import SearchR3Embedding
from tokenizers import AddedToken

from benchmarks.fuzz.nasty_texts import ALL_CONTROL_TOKENS
from searchr3_embed import ReasoningEmbedder
from searchr3_embed.prompt_words import Prompts

_BATCH = 32
# Calls that take one text, and are made for each in turn.
ONE_AT_A_TIME = ("langchain embed_query", "llama_index get_query_embedding")


@dataclasses.dataclass
class Subject:
    """One checkpoint and every way into it.

    Attributes:
        name: For the report.
        embedder: The core.
        langchain: LangChain's adapter over the same checkpoint.
        llama_index: LlamaIndex's.
    """

    name: str
    embedder: ReasoningEmbedder
    langchain: SearchR3Embeddings
    llama_index: SearchR3Embedding

    def think(self, wanted: bool) -> None:
        """Sets whether queries of the integrations think."""
        self.langchain.reason_queries = self.llama_index.reason_queries = wanted

    def ways(self) -> dict[str, Any]:
        """Every call that takes texts, each as a function of a list of them."""
        return {
            "encode_document": self.embedder.encode_document,
            "encode_query": self.embedder.encode_query,
            "encode_query(reason=False)": lambda texts: self.embedder.encode_query(texts, reason=False),
            "reason": self.embedder.reason,
            "langchain embed_documents": self.langchain.embed_documents,
            "langchain embed_query": lambda texts: [self.langchain.embed_query(text) for text in texts],
            "llama_index get_text_embedding_batch": self.llama_index.get_text_embedding_batch,
            "llama_index get_query_embedding": lambda texts: [
                self.llama_index.get_query_embedding(text) for text in texts
            ],
        }


def subject(name: str, folder: str, device: str | None = None) -> Subject:
    """Loads a checkpoint three times, as a program that uses both frameworks would.

    Raises:
        CheckpointError: It can't be loaded.
    """
    embedder = ReasoningEmbedder(folder, device=device, on_truncate="ignore")
    langchain = SearchR3Embeddings(model=folder, device=device, batch_size=_BATCH)
    llama_index = SearchR3Embedding(model_name=folder, device=device, embed_batch_size=_BATCH)
    langchain.embedder.on_truncate = llama_index.embedder.on_truncate = "ignore"
    return Subject(name, embedder, langchain, llama_index)


def small_models(scratch: Path) -> Iterator[tuple[str, Path]]:
    """Writes small random single models, names and folders."""
    from tests import tiny

    yield "small BERT", tiny.save_mini(scratch / "mini")
    yield "small Qwen2", tiny.save_qwen2(scratch / "qwen2")
    yield "small model that knows all control tokens", save_polyglot(scratch / "polyglot")


def save_polyglot(folder: Path) -> Path:
    """A small Qwen2 to whose tokenizer the control tokens of every template belong: each of them could get in."""
    import torch

    from tests import tiny

    model, tokenizer = tiny.qwen2()
    new = [token for token in ALL_CONTROL_TOKENS if token not in tokenizer.get_vocab()]
    # Every sort of added token that tokenizers know.
    tokenizer.add_tokens(
        [
            AddedToken(
                token, special=place % 3 != 0, lstrip=place % 4 == 1, rstrip=place % 4 == 2, normalized=place % 2 == 0
            )
            for place, token in enumerate(new)
        ]
    )
    torch.manual_seed(1)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    prompts = Prompts(direct_system="Represent the text.", reasoning_system="Think.", max_reasoning_tokens=8)
    model.save_pretrained(folder)
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder)
    prompts.save(folder)
    return folder
