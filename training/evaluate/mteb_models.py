"""Our checkpoints as models of the mteb package: documents embedded in one pass, queries thought about or not.

from training.evaluate.mteb_models import register
register("searchr3/mine", "runs/sft/model")
mteb.evaluate(mteb.get_model("searchr3/mine"), mteb.get_tasks(tasks=["BrightBiologyRetrieval"]))
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluate.cells import EvaluationError

# What mteb must know of a model; the rest of its card is filled in where a model is published.
_FACTS = {
    "open_weights": True,
    "framework": ["Sentence Transformers", "PyTorch"],
    "use_instructions": False,
    "languages": ["eng-Latn"],
    "modalities": ["text"],
}


class MtebEncoder:
    """What mteb calls an encoder, over one of our embedders.

    Args:
        embedder: One of our checkpoints.
        reason: Whether queries are thought about.
        max_reasoning_tokens: Budget per query; None takes the checkpoint's.
        meta: What mteb knows of the model; None describes the embedder.
    """

    def __init__(
        self, embedder: Any, *, reason: bool = True, max_reasoning_tokens: int | None = None, meta: Any = None
    ) -> None:
        self.embedder, self.reason, self.max_reasoning_tokens = embedder, reason, max_reasoning_tokens
        self.mteb_model_meta = meta if meta is not None else describe("searchr3/unnamed", embedder=embedder)

    def encode(self, inputs: Any, *, prompt_type: Any = None, **kwargs: Any) -> np.ndarray:
        """Vectors of the texts of all batches: queries and documents each in their way, others without thinking.

        Args:
            inputs: Batches, each a mapping with the texts under "text".
            prompt_type: ``"query"``, ``"document"`` or None, for tasks that have no queries.
            **kwargs: ``batch_size`` and ``show_progress_bar`` are passed on; mteb's others describe the task.

        Returns:
            Float32 of shape (texts, dimension).
        """
        texts = [text for batch in inputs for text in batch["text"]]
        options = {name: kwargs[name] for name in ("batch_size", "show_progress_bar") if name in kwargs}
        side = str(getattr(prompt_type, "value", prompt_type))
        if side == "query":
            budget = {"max_reasoning_tokens": self.max_reasoning_tokens} if self.reason else {}
            return self.embedder.encode_query(texts, reason=self.reason, **budget, **options)
        if side == "document":
            return self.embedder.encode_document(texts, **options)
        return self.embedder.encode(texts, **options)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The embedder's similarity of all pairs."""
        return self.embedder.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The embedder's similarity, row by row."""
        return self.embedder.similarity_pairwise(embeddings1, embeddings2)


def register(
    name: str, folder: str | Path, *, reason: bool = True, max_reasoning_tokens: int | None = None, **facts: Any
) -> Any:
    """Makes a checkpoint known to mteb, so that ``mteb.get_model(name)`` loads it.

    Args:
        name: ``"organisation/model"``.
        folder: A folder, an alias or a hub id.
        reason: Whether queries are thought about.
        max_reasoning_tokens: Budget per query; None takes the checkpoint's.
        **facts: Further fields of mteb's ``ModelMeta`` (``license``, ``n_parameters``, ``training_datasets`` ...).

    Returns:
        The ``ModelMeta``.

    Raises:
        EvaluationError: The name has no organisation, or is taken by another model.
        ImportError: mteb is not installed.
    """
    from mteb.models.model_implementations import MODEL_REGISTRY

    if name.count("/") != 1 or not all(name.split("/")):
        raise EvaluationError(f"mteb takes names like 'searchr3/mine', got {name!r}")
    known = MODEL_REGISTRY.get(name)
    if known is not None and getattr(known.loader, "func", None) is not _load:
        raise EvaluationError(f"mteb knows another model called {name!r}; take another name")
    loader = functools.partial(_load, str(folder), reason, max_reasoning_tokens)
    MODEL_REGISTRY[name] = describe(name, str(folder), loader=loader, **facts)
    return MODEL_REGISTRY[name]


def describe(name: str, folder: str | None = None, *, embedder: Any = None, loader: Any = None, **facts: Any) -> Any:
    """What mteb knows of a checkpoint: its ``ModelMeta``.

    Args:
        name: ``"organisation/model"``.
        folder: Where it is, if it is a folder: its settings give the revision.
        embedder: The loaded model, which knows its dimension and how its vectors are compared.
        loader: What loads it.
        **facts: Further fields.
    """
    from mteb.models.model_meta import ModelMeta

    fields: dict[str, Any] = {**_FACTS, "name": name, "loader": loader, "revision": _revision(folder)}
    if embedder is not None:
        fields |= {"embed_dim": embedder.get_embedding_dimension(), "max_tokens": embedder.max_seq_length}
    return ModelMeta.create_empty(overwrites=fields | facts)


def _load(
    folder: str,
    reason: bool,
    max_reasoning_tokens: int | None,
    model_name: str,
    revision: str | None = None,
    device: str | None = None,
    **kwargs: Any,
) -> MtebEncoder:
    from searchr3_embed import ReasoningEmbedder

    embedder = ReasoningEmbedder(folder, device=device)
    embedder.conversation.check_budget(max_reasoning_tokens)
    meta = describe(model_name, folder, embedder=embedder)
    return MtebEncoder(embedder, reason=reason, max_reasoning_tokens=max_reasoning_tokens, meta=meta)


def _revision(folder: str | None) -> str:
    """Tells two trainings apart that have one name; weights are recognised by the settings beside them."""
    files = sorted(Path(folder).rglob("*.json")) if folder is not None and Path(folder).is_dir() else []
    if not files:
        return "no_revision_available"
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:40]
