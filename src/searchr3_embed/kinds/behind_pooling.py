"""What comes behind the pooling in a pipeline of sentence-transformers."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer
from torch import Tensor


def finish(pipeline: SentenceTransformer, states: Tensor) -> Tensor:
    """Sends pooled states through the modules behind the pooling: normalisation, and whatever was appended.

    Args:
        pipeline: A transformer, a pooling, and the modules that are meant.
        states: Shape (texts, hidden size).

    Returns:
        Shape (texts, dimension).
    """
    features = {"sentence_embedding": states}
    for module in list(pipeline.children())[2:]:
        weight = next(module.parameters(), None)
        if weight is not None:  # the engine's states are float32, whatever the weights are
            features["sentence_embedding"] = features["sentence_embedding"].to(weight.dtype)
        features = module(features)
    return features["sentence_embedding"]
