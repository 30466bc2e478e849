"""The LlamaIndex ``BaseEmbedding`` interface over a ReasoningEmbedder."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, field_validator
from llama_index.core.schema import QueryBundle

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.lazy_embedder import LazyEmbedder
from searchr3_embed.reasoned_embedding import GivenReasoning


class SearchR3Embedding(BaseEmbedding):
    """Embeds documents in one forward pass each; thinks about queries first.

    The model loads when the first text is embedded. Calls from several threads and concurrent async calls are safe;
    the latter run as one batch.

    Example:
        .. code-block:: python

            from llama_index.core import Settings
            from llama_index.embeddings.searchr3 import SearchR3Embedding

            Settings.embed_model = SearchR3Embedding()
    """

    # Assignments are checked as arguments are, so that a cache can't come in later either.
    model_config = ConfigDict(validate_assignment=True, extra="forbid")

    model_name: str = Field(default="searchr3", description="searchr3 (packaged, offline), a folder, or a hub id.")
    device: str | None = Field(default=None, description="cpu, cuda, mps ...; None takes the best there is.")
    embed_batch_size: int = Field(default=32, gt=0, le=2048, description="Texts computed at once.")
    reason_queries: bool = Field(default=True, description="Whether queries think; documents never do.")
    max_reasoning_tokens: int | None = Field(default=None, ge=0, description="Budget per query; None: checkpoint's.")
    normalize: bool = Field(default=True, description="Whether embeddings are scaled to length 1.")
    cache_folder: str | None = Field(default=None, description="Where hub downloads are kept.")
    show_progress: bool = Field(default=False, description="Whether batches of documents show a progress bar.")

    _lazy: LazyEmbedder = PrivateAttr(default_factory=LazyEmbedder)

    @field_validator("embeddings_cache")
    @classmethod
    def _refuse_cache(cls, value: Any) -> None:
        """Its keys are bare texts, so a question would get the vector of a document of the same words."""
        if value is not None:
            raise ValueError(
                "embeddings_cache must be None: it can't tell a query from a document of the same words, and their "
                "embeddings differ. An IngestionPipeline's cache is safe."
            )

    @classmethod
    def class_name(cls) -> str:
        """Name used in serialised components."""
        return "SearchR3Embedding"

    @property
    def embedder(self) -> ReasoningEmbedder:
        """The model, loaded on first use.

        Raises:
            CheckpointError: The model can't be found, is damaged, or was never trained to embed.
        """
        return self._lazy.get(self.model_name, self.device, self.cache_folder)

    def query_bundle(
        self, query: str, *, reasoning: GivenReasoning = None, continue_reasoning: bool = False
    ) -> QueryBundle:
        """A query with its embedding, after the reasoning that an agent has written already.

        ``index.as_retriever().retrieve(embedding.query_bundle(query, reasoning=thought))``: retrievers take the
        embedding as it is. ``custom_embedding_strs`` would be averaged, which is something else.

        Args:
            query: The query.
            reasoning: What was thought about it, in place of words that the model writes: a text, a ``Reasoning`` or
                token ids. It counts whatever ``reason_queries`` says.
            continue_reasoning: Whether the model goes on after that.

        Raises:
            TypeError: ``query`` is not a text, or ``reasoning`` of another kind.
            ValueError: ``reasoning`` can't be read.
        """
        options = self._given_options(reasoning, continue_reasoning)
        return QueryBundle(query, embedding=self.embedder.encode_query([query], **options)[0].tolist())

    async def aquery_bundle(
        self, query: str, *, reasoning: GivenReasoning = None, continue_reasoning: bool = False
    ) -> QueryBundle:
        """As ``query_bundle``; concurrent calls run as one batch and the event loop stays free."""
        options = self._given_options(reasoning, continue_reasoning)
        rows = await (await self._aload()).aencode_query([query], **options)
        return QueryBundle(query, embedding=rows[0].tolist())

    def _get_query_embedding(self, query: str) -> Embedding:
        return self.embedder.encode_query([query], **self._query_options())[0].tolist()

    def _get_text_embedding(self, text: str) -> Embedding:
        return self.embedder.encode_document([text], **self._options())[0].tolist()

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        options = self._options() | {"show_progress_bar": self.show_progress}
        return self.embedder.encode_document(texts, **options).tolist()

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await (await self._aload()).aencode_query([query], **self._query_options()))[0].tolist()

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return (await (await self._aload()).aencode_document(texts, **self._options())).tolist()

    async def _aload(self) -> ReasoningEmbedder:
        return await self._lazy.aget(self.model_name, self.device, self.cache_folder)

    def _options(self) -> dict[str, Any]:
        return {"batch_size": self.embed_batch_size, "normalize_embeddings": self.normalize}

    def _given_options(self, reasoning: GivenReasoning, continue_reasoning: bool) -> dict[str, Any]:
        if reasoning is None:
            return self._query_options()
        given = {"reason": True, "reasoning": [reasoning], "continue_reasoning": continue_reasoning}
        return self._query_options() | given

    def _query_options(self) -> dict[str, Any]:
        budget = self.max_reasoning_tokens
        return {"reason": self.reason_queries, "max_reasoning_tokens": budget, **self._options()}
