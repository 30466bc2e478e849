"""Chroma's interface: documents get the encoder's vectors, questions are thought about. Needs ``chromadb``.

Chroma keeps the name of the function that embedded a collection, and opens the collection only with a function of that
name. A collection of Chroma's default function (all-MiniLM-L6-v2 by ONNX) is therefore opened with
``SearchR3EmbeddingFunction(stored_as="default")``; its vectors are those of an encoder made from all-MiniLM-L6-v2.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from searchr3_embed.embedder import ReasoningEmbedder
from searchr3_embed.lazy_embedder import LazyEmbedder

NAME = "searchr3"
_CONFIG = ("model", "reason_queries", "max_reasoning_tokens")


@register_embedding_function
class SearchR3EmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds documents in one forward pass each; thinks about queries first. The model loads at first use.

    Args:
        model: ``"searchr3"`` (packaged weights, offline), a folder, or a hub id.
        device: ``"cpu"``, ``"cuda"`` ...; None takes the best there is.
        reason_queries: Whether queries are thought about; documents never are.
        max_reasoning_tokens: Budget of generated tokens per query; None takes the checkpoint's.
        stored_as: The name under which the collection keeps its function: ``"default"`` for one that was made without
            any, ``"sentence_transformer"`` for Chroma's SentenceTransformerEmbeddingFunction ...; for collections that
            exist. Chroma does not compare vectors: do it once with :meth:`check`.
    """

    def __init__(
        self,
        model: str = NAME,
        *,
        device: str | None = None,
        reason_queries: bool = True,
        max_reasoning_tokens: int | None = None,
        stored_as: str = NAME,
    ) -> None:
        self.model, self.device = model, device
        self.reason_queries, self.max_reasoning_tokens = reason_queries, max_reasoning_tokens
        self._lazy = LazyEmbedder()
        if stored_as != NAME:
            # Of this object alone: the class stays registered under its own name, and so does whatever has the other.
            vars(self)["name"] = lambda: stored_as

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002  # Chroma compares the signature
        """Embeds documents."""
        return self._rows(self.embedder.encode_document(list(input)))

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002
        """Embeds queries, after thinking about them unless ``reason_queries`` is off."""
        vectors = self.embedder.encode_query(
            list(input), reason=self.reason_queries, max_reasoning_tokens=self.max_reasoning_tokens
        )
        return self._rows(vectors)

    @property
    def embedder(self) -> ReasoningEmbedder:
        """The model, loaded on first use.

        Raises:
            CheckpointError: The model can't be found, is damaged, or was never trained to embed.
        """
        return self._lazy.get(self.model, self.device, None)

    def check(self, collection: Any, rows: int = 16) -> None:
        """Embeds a few documents of a collection again and compares.

        Args:
            collection: A Chroma collection that keeps its documents.
            rows: How many.

        Raises:
            ValueError: The collection's vectors are another encoder's, or it holds no documents.
        """
        found = collection.get(limit=rows, include=["documents", "embeddings"])
        pairs = zip(found["documents"] or [], found["embeddings"], strict=True)
        kept = [(text, vector) for text, vector in pairs if text is not None]
        if not kept:
            raise ValueError(f"The collection {collection.name!r} holds no documents to compare.")
        texts, vectors = zip(*kept, strict=True)
        result = self.embedder.check_index(texts, np.asarray(vectors), rows=rows)
        if not result:
            raise ValueError(f"The collection {collection.name!r}: {result.message}")

    @staticmethod
    def name() -> str:
        """What new collections keep as the name of their function."""
        return NAME

    def default_space(self) -> Space:
        """Cosine: vectors of length 1 for the packaged model."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """What a new collection keeps, so that a later process builds the same function."""
        # A collection that is made under another function's name is left to that function's own defaults.
        return {field: getattr(self, field) for field in _CONFIG} if self.name() == NAME else {}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> SearchR3EmbeddingFunction:
        """The function of a collection, from what it keeps."""
        return SearchR3EmbeddingFunction(**config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """How queries are thought about may change; the model may not: its documents are in the collection.

        Raises:
            ValueError: Another model.
        """
        if old_config.get("model") != new_config.get("model"):
            former, wanted = old_config.get("model"), new_config.get("model")
            raise ValueError(f"The collection's documents are of {former!r}, not of {wanted!r}.")

    @staticmethod
    def _rows(vectors: np.ndarray) -> Embeddings:
        return cast(Embeddings, list(vectors))
