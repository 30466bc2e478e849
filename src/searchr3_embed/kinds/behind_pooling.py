"""What comes behind the pooling in a pipeline of sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence

from sentence_transformers import SentenceTransformer
from torch import Tensor

from searchr3_embed.files import shorten


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


def check_finite(vectors: Tensor, texts: Sequence[str]) -> Tensor:
    """The vectors as they are: an index with one NaN in it answers nothing rightly.

    Args:
        vectors: Shape (texts, dimension).
        texts: What they are of.

    Raises:
        ValueError: A number is infinite or NaN.
    """
    # A sum is quick, and not finite if one of its terms is not.
    if not bool(vectors.sum().isfinite()):
        wrong = (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"The vector of text {wrong[0]} ({shorten(repr(texts[wrong[0]]), 60)}) holds numbers that are not "
                f"finite: the weights are damaged, or too large for {vectors.dtype}. {len(wrong)} of {len(texts)} are "
                "so."
            )
    return vectors
