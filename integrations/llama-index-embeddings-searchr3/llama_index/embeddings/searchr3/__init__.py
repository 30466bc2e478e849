"""LlamaIndex embeddings that think about a query before they embed it."""

from searchr3_embed import requirements

requirements.check("llama-index-embeddings-searchr3")

from llama_index.embeddings.searchr3.base import SearchR3Embedding  # noqa: E402 # the framework is known to be there now

__all__ = ["SearchR3Embedding"]
