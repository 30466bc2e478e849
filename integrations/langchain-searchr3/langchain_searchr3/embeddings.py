"""The LangChain ``Embeddings`` interface over a ReasoningEmbedder."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.utils import from_env
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, PrivateAttr

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.lazy_embedder import LazyEmbedder
from searchr3_embed.reasoned_embedding import GivenReasoning


class SearchR3Embeddings(BaseModel, Embeddings):
    """Embeds documents in one forward pass each; thinks about queries first.

    The model loads when the first text is embedded. Texts are never altered. Calls from several threads and
    concurrent async calls are safe; the latter run as one batch.

    Example:
        .. code-block:: python

            from langchain_core.vectorstores import InMemoryVectorStore
            from langchain_searchr3 import SearchR3Embeddings

            store = InMemoryVectorStore.from_texts(texts, SearchR3Embeddings())
            store.similarity_search("why is the sky blue?", k=3)
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    model_name: str = Field(default_factory=from_env("SEARCHR3_MODEL", default="searchr3"), alias="model")
    """``"searchr3"`` (packaged weights, offline), a folder, or a hub id; else what SEARCHR3_MODEL says."""
    device: str | None = None
    """``"cpu"``, ``"cuda"``, ``"mps"`` ...; None takes the best there is."""
    batch_size: PositiveInt = 32
    """Texts computed at once."""
    reason_queries: bool = True
    """Whether ``embed_query`` thinks; documents never do."""
    max_reasoning_tokens: NonNegativeInt | None = None
    """Budget of generated tokens per query; None takes the checkpoint's."""
    normalize: bool = False
    """Whether embeddings are scaled to length 1 if the model does not do so itself."""
    cache_folder: str | None = None
    """Where hub downloads are kept; None takes the hub's default."""
    show_progress: bool = False
    """Whether ``embed_documents`` shows a progress bar."""

    _lazy: LazyEmbedder = PrivateAttr(default_factory=LazyEmbedder)

    @property
    def embedder(self) -> ReasoningEmbedder:
        """The model, loaded on first use.

        Raises:
            CheckpointError: The model can't be found, is damaged, or was never trained to embed.
        """
        return self._lazy.get(self.model_name, self.device, self.cache_folder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embeds documents, without reasoning.

        Args:
            texts: The documents.

        Returns:
            One list of floats for each, in order.

        Raises:
            TypeError: An item is not a text.
        """
        return self.embedder.encode_document(
            _texts(texts), show_progress_bar=self.show_progress, **self._options()
        ).tolist()

    def embed_query(
        self, text: str, *, reasoning: GivenReasoning = None, continue_reasoning: bool = False
    ) -> list[float]:
        """Embeds a query, after reasoning about it unless ``reason_queries`` is off.

        An agent that has written why it searches gives that as ``reasoning``; with a vector store:
        ``store.similarity_search_by_vector(embeddings.embed_query(text, reasoning=thought))``.

        Args:
            text: The query.
            reasoning: What was thought about it already, in place of words that the model writes: a text, a
                ``Reasoning`` or token ids. It counts whatever ``reason_queries`` says.
            continue_reasoning: Whether the model goes on after that.

        Raises:
            TypeError: ``text`` is not a text, or ``reasoning`` of another kind.
            ValueError: ``reasoning`` can't be read.
        """
        options = self._query_options(reasoning, continue_reasoning)
        return self.embedder.encode_query([text], **options)[0].tolist()

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As ``embed_documents``; concurrent calls run as one batch and the event loop stays free."""
        embedder = await self._lazy.aget(self.model_name, self.device, self.cache_folder)
        return (await embedder.aencode_document(_texts(texts), **self._options())).tolist()

    async def aembed_query(
        self, text: str, *, reasoning: GivenReasoning = None, continue_reasoning: bool = False
    ) -> list[float]:
        """As ``embed_query``; concurrent calls run as one batch and the event loop stays free."""
        embedder = await self._lazy.aget(self.model_name, self.device, self.cache_folder)
        options = self._query_options(reasoning, continue_reasoning)
        return (await embedder.aencode_query([text], **options))[0].tolist()

    def _options(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "normalize_embeddings": self.normalize}

    def _query_options(self, reasoning: GivenReasoning, continue_reasoning: bool) -> dict[str, Any]:
        thinking: dict[str, Any] = {"reason": self.reason_queries, "max_reasoning_tokens": self.max_reasoning_tokens}
        if reasoning is not None:
            thinking |= {"reason": True, "reasoning": [reasoning], "continue_reasoning": continue_reasoning}
        return self._options() | thinking


def _texts(values: Any) -> list[str]:
    """The values as a list; a lone text is refused, because its letters would be taken for documents."""
    if isinstance(values, str):
        raise TypeError(f"Documents must be a list of str, got the str {values[:80]!r}.")
    return list(values)
