"""The component that embeds queries."""

from __future__ import annotations

from typing import Any

from haystack import component, default_from_dict, default_to_dict
from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.searchr3._loading import (
    Loading,
    check_positive,
    check_text,
    with_device,
)

from searchr3_embed.lazy_embedder import LazyEmbedder


@component
class SearchR3TextEmbedder(Loading):
    """Thinks about a query, then embeds it.

    Args:
        model: ``"searchr3"`` (packaged weights, works offline), a folder, or a hub id.
        device: Where it runs; None takes the best there is.
        prefix: Put before each query.
        suffix: Put behind each query.
        batch_size: Queries computed at once, where asynchronous calls wait together.
        progress_bar: Whether to show one.
        reason: Whether queries think.
        max_reasoning_tokens: Budget of generated tokens per query; None takes the checkpoint's.
        normalize_embeddings: Whether embeddings are scaled to length 1 if the model does not do so itself.

    Raises:
        TypeError: A text or the budget is of another type.
        ValueError: A number is out of range.

    Example:
        .. code-block:: python

            from haystack_integrations.components.embedders.searchr3 import SearchR3TextEmbedder

            SearchR3TextEmbedder().run("why is the sky blue?")["embedding"]
    """

    def __init__(
        self,
        model: str = "searchr3",
        device: ComponentDevice | None = None,
        prefix: str = "",
        suffix: str = "",
        batch_size: int = 32,
        progress_bar: bool = False,
        reason: bool = True,
        max_reasoning_tokens: int | None = None,
        normalize_embeddings: bool = False,
    ) -> None:
        for name, value in (("model", model), ("prefix", prefix), ("suffix", suffix)):
            check_text(name, value)
        check_positive("batch_size", batch_size)
        if max_reasoning_tokens is not None and max_reasoning_tokens != 0:
            check_positive("max_reasoning_tokens", max_reasoning_tokens)
        self.model, self.device, self.prefix, self.suffix = model, device, prefix, suffix
        self.batch_size, self.progress_bar, self.reason = batch_size, progress_bar, reason
        self.max_reasoning_tokens, self.normalize_embeddings = max_reasoning_tokens, normalize_embeddings
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
            reason=self.reason,
            max_reasoning_tokens=self.max_reasoning_tokens,
            normalize_embeddings=self.normalize_embeddings,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SearchR3TextEmbedder:
        """The component of such data."""
        return default_from_dict(cls, with_device(data))

    @component.output_types(embedding=list[float])
    def run(self, text: str, reasoning: str | list[int] | None = None) -> dict[str, Any]:
        """Embeds a query.

        Args:
            text: The query.
            reasoning: What was thought about it already, by an agent for example, in place of words that the model
                writes.

        Returns:
            ``{"embedding": [...]}``.

        Raises:
            TypeError: ``text`` is not a text, or ``reasoning`` of another kind.
            ValueError: ``reasoning`` can't be read.
        """
        return {"embedding": self.embedder.encode_query([self._framed(text)], **self._options(reasoning))[0].tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str, reasoning: str | list[int] | None = None) -> dict[str, Any]:
        """As ``run``; concurrent calls run as one batch and the event loop stays free."""
        embedder = await self._aload()
        rows = await embedder.aencode_query([self._framed(text)], **self._options(reasoning))
        return {"embedding": rows[0].tolist()}

    def _framed(self, text: Any) -> str:
        if not isinstance(text, str):
            raise TypeError(
                f"SearchR3TextEmbedder expects a str as input, got {type(text).__name__}. To embed Documents, use "
                "SearchR3DocumentEmbedder."
            )
        return self.prefix + text + self.suffix

    def _options(self, reasoning: str | list[int] | None) -> dict[str, Any]:
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "show_progress_bar": self.progress_bar,
            "reason": self.reason,
            "max_reasoning_tokens": self.max_reasoning_tokens,
            "normalize_embeddings": self.normalize_embeddings,
        }
        if reasoning is not None:
            options |= {"reason": True, "reasoning": [reasoning]}
        return options

    def _get_telemetry_data(self) -> dict[str, Any]:
        """What Haystack's telemetry, where it is on, sends of this component: as its own embedders do."""
        return {"model": self.model}
