"""LlamaIndex embeddings that think about a query before they embed it."""

from llama_index.embeddings.searchr3.base import SearchR3Embedding

__all__ = ["SearchR3Embedding"]
