"""LangChain embeddings that think about a query before they embed it."""

from searchr3_embed import requirements

requirements.check("langchain-searchr3")

from langchain_searchr3.embeddings import SearchR3Embeddings  # noqa: E402 # only now is the framework known to be there

__all__ = ["SearchR3Embeddings"]
