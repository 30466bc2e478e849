"""Adapting the question side to a corpus, so that every stored document vector stays valid: ``searchr3 adapt``.

What training shares with it lies here too, since people install the wheel.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from searchr3_embed.adapt.adapting import AdaptSettings, adapt

__all__ = ["AdaptSettings", "adapt"]


if not TYPE_CHECKING:  # a type checker that saw this would accept any name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module("searchr3_embed.adapt.adapting"), name)
