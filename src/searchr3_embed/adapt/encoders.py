"""From any encoder: an embedder whose questions have learned nothing yet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from searchr3_embed.adapt.routes import with_routes
from searchr3_embed.checkpoint import new_thinker
from searchr3_embed.embedder import ReasoningEmbedder


def from_encoder(
    encoder: str | os.PathLike[str],
    thinker: str | os.PathLike[str] | None = None,
    *,
    needs_thinker: bool = False,
    **kwargs: Any,
) -> ReasoningEmbedder:
    """An encoder that :func:`searchr3_embed.adapt.adapt` can start from; every vector is the encoder's.

    Args:
        encoder: A sentence-transformers model, a folder or a hub id.
        thinker: A causal language model beside it.
        needs_thinker: Whether a thinker is to be trained; without one, encoders of every kind can be taken, not only
            those whose layers a thinker can share.
        **kwargs: Arguments of ``SentenceTransformer``.

    Raises:
        CheckpointError: The encoder or the thinker can't be found or used.
        ValueError: A thinker can't share the encoder's layers, and none is named.
    """
    if needs_thinker or thinker is not None:
        return ReasoningEmbedder.from_encoder(encoder, thinker, on_truncate="ignore", **kwargs)
    pipeline: SentenceTransformer = new_thinker.load_encoder(encoder, **kwargs)
    path = Path(encoder)
    modules = list(pipeline.children())
    name = path.resolve().name if path.is_dir() else os.fspath(encoder)
    return with_routes(pipeline, name, modules, modules)
