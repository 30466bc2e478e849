"""The component that embeds documents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.searchr3._loading import (
    Loading,
    check_positive,
    check_text,
    with_device,
)

from searchr3_embed.lazy_embedder import LazyEmbedder


@component
class SearchR3DocumentEmbedder(Loading):
    """Embeds documents in one forward pass each; documents never think.

    Args:
        model: ``"searchr3"`` (packaged weights, works offline), a folder, or a hub id.
        device: Where it runs; None takes the best there is.
        prefix: Put before each text.
        suffix: Put behind each text.
        batch_size: Documents computed at once.
        progress_bar: Whether to show one.
        meta_fields_to_embed: Metadata fields whose values are embedded in front of the content.
        embedding_separator: Stands between them.
        normalize_embeddings: Whether embeddings are scaled to length 1 if the model does not do so itself.

    Raises:
        TypeError: A text is of another type.
        ValueError: ``batch_size`` is out of range.

    Example:
        .. code-block:: python

            from haystack import Document
            from haystack_integrations.components.embedders.searchr3 import SearchR3DocumentEmbedder

            SearchR3DocumentEmbedder().run([Document(content="I love pizza!")])["documents"][0].embedding
    """

    def __init__(
        self,
        model: str = "searchr3",
        device: ComponentDevice | None = None,
        prefix: str = "",
        suffix: str = "",
        batch_size: int = 32,
        progress_bar: bool = True,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        normalize_embeddings: bool = False,
    ) -> None:
        texts = (
            ("model", model),
            ("prefix", prefix),
            ("suffix", suffix),
            ("embedding_separator", embedding_separator),
        )
        for name, value in texts:
            check_text(name, value)
        if isinstance(meta_fields_to_embed, str):
            raise TypeError(f"meta_fields_to_embed must be a list of str, got the str {meta_fields_to_embed!r}.")
        check_positive("batch_size", batch_size)
        self.model, self.device, self.prefix, self.suffix = model, device, prefix, suffix
        self.batch_size, self.progress_bar = batch_size, progress_bar
        self.meta_fields_to_embed, self.embedding_separator = list(meta_fields_to_embed or []), embedding_separator
        self.normalize_embeddings = normalize_embeddings
        self._lazy = LazyEmbedder()

    def warm_up(self) -> None:
        """Loads the model."""
        self.embedder  # noqa: B018 # asking for it loads it

    async def warm_up_async(self) -> None:
        """Loads the model without blocking the event loop."""
        await self._aload()

    def to_dict(self) -> dict[str, Any]:
        """The component's settings as plain data."""
        return default_to_dict(
            self,
            model=self.model,
            device=self.device.to_dict() if self.device is not None else None,
            prefix=self.prefix,
            suffix=self.suffix,
            batch_size=self.batch_size,
            progress_bar=self.progress_bar,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
            normalize_embeddings=self.normalize_embeddings,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SearchR3DocumentEmbedder:
        """The component of such data."""
        return default_from_dict(cls, with_device(data))

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embeds documents.

        Args:
            documents: The documents.

        Returns:
            ``{"documents": [...]}``: copies with their embeddings, in the same order; those given stay as they are.

        Raises:
            TypeError: ``documents`` is not a list of Documents.
        """
        texts = self._texts(documents)
        vectors = self.embedder.encode_document(texts, **self._options())
        return {"documents": _with_embeddings(documents, vectors)}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """As ``run``; concurrent calls run as one batch and the event loop stays free."""
        texts = self._texts(documents)
        vectors = await (await self._aload()).aencode_document(texts, **self._options())
        return {"documents": _with_embeddings(documents, vectors)}

    def _texts(self, documents: Any) -> list[str]:
        if not isinstance(documents, list) or not all(isinstance(one, Document) for one in documents):
            raise TypeError(
                "SearchR3DocumentEmbedder expects a list of Documents as input. To embed a str, use "
                "SearchR3TextEmbedder."
            )
        return [self._text(document) for document in documents]

    def _text(self, document: Document) -> str:
        fields = [document.meta.get(name) for name in self.meta_fields_to_embed]
        parts = [str(value) for value in fields if value is not None] + [document.content or ""]
        return self.prefix + self.embedding_separator.join(parts) + self.suffix

    def _options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "show_progress_bar": self.progress_bar,
            "normalize_embeddings": self.normalize_embeddings,
        }

    def _get_telemetry_data(self) -> dict[str, Any]:
        """What Haystack's telemetry, where it is on, sends of this component: as its own embedders do."""
        return {"model": self.model}


def _with_embeddings(documents: list[Document], vectors: Any) -> list[Document]:
    return [replace(one, embedding=vector.tolist()) for one, vector in zip(documents, vectors, strict=True)]
