"""Text embeddings from a language model that thinks before it embeds.

The public names load on first use, so that ``import searchr3_embed`` costs milliseconds and does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder
    from searchr3_embed.reasoning_trace import Reasoning

    __version__: str

__all__ = ["Reasoning", "ReasoningEmbedder", "__version__"]
_MODULES = {"Reasoning": "reasoning_trace", "ReasoningEmbedder": "embedder"}


if not TYPE_CHECKING:  # a type checker that saw this would accept any name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "__version__":
            from importlib.metadata import version

            value = version("searchr3-embed")
        else:
            value = getattr(importlib.import_module(f"searchr3_embed.{_MODULES[name]}"), name)
        globals()[name] = value  # the next access is an ordinary one
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
