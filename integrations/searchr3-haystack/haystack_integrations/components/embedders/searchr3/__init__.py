"""Haystack embedders that think about a query before they embed it."""

from searchr3_embed import requirements

requirements.check("searchr3-haystack")

# Only now is the framework known to be there.
from haystack_integrations.components.embedders.searchr3.document_embedder import SearchR3DocumentEmbedder  # noqa: E402
from haystack_integrations.components.embedders.searchr3.text_embedder import SearchR3TextEmbedder  # noqa: E402

__all__ = ["SearchR3DocumentEmbedder", "SearchR3TextEmbedder"]
