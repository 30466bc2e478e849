"""What an embedder tells about one text that it thought about."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Reasoning:
    """One text, what the model thought about it, and the embedding that came of it.

    Attributes:
        text: The text as given.
        reasoning: What the model wrote, special tokens left out.
        finish_reason: ``"embed_token"`` if the model closed its reasoning itself; ``"length"`` if the token was
            appended because the budget was used up or the model ended its turn without it.
        prompt_tokens: Length of the prompt in tokens, template included.
        reasoning_tokens: Number of generated tokens, the embed token not counted.
        reasoning_ids: The generated token ids, the embed token not included.
        embedding: Float32 array of shape (dimension,).
    """

    text: str
    reasoning: str
    finish_reason: str
    prompt_tokens: int
    reasoning_tokens: int
    reasoning_ids: list[int]
    embedding: np.ndarray
