"""LangChain embeddings that think about a query before they embed it."""

from langchain_searchr3.embeddings import SearchR3Embeddings

__all__ = ["SearchR3Embeddings"]
