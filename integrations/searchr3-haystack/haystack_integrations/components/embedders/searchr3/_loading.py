"""What both components share: a model that loads when it is warmed up or first used, and checks of their arguments."""

from __future__ import annotations

from typing import Any

from haystack.utils import ComponentDevice

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.lazy_embedder import LazyEmbedder


class Loading:
    """The model of a component; weights are loaded once and neither copied nor serialised.

    Attributes:
        model: ``"searchr3"``, a folder or a hub id.
        device: Where it runs; None takes the best there is.
    """

    model: str
    device: ComponentDevice | None
    _lazy: LazyEmbedder

    @property
    def embedder(self) -> ReasoningEmbedder:
        """The model, loaded on first use.

        Raises:
            CheckpointError: The model can't be found, is damaged, or was never trained to embed.
        """
        return self._lazy.get(*self._key())

    async def _aload(self) -> ReasoningEmbedder:
        return await self._lazy.aget(*self._key())

    def _key(self) -> tuple[str, str | None, None]:
        return self.model, self.device.to_torch_str() if self.device is not None else None, None


def check_positive(name: str, value: object) -> None:
    """Raises ValueError unless a number is an integer above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def check_text(name: str, value: object) -> None:
    """Raises TypeError unless a value is a text."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {value!r} of type {type(value).__name__}.")


def with_device(data: dict[str, Any]) -> dict[str, Any]:
    """A serialised component, its device made whole again."""
    parameters = dict(data.get("init_parameters", {}))
    if isinstance(parameters.get("device"), dict):
        parameters["device"] = ComponentDevice.from_dict(parameters["device"])
    return {**data, "init_parameters": parameters}
