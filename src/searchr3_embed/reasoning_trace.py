"""What an embedder tells about one text that it thought about."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Reasoning:
    """One text, what the model thought about it, and the embedding that came of it.

    Attributes:
        text: The text as given.
        reasoning: What the model wrote or was given, special tokens left out.
        finish_reason: ``"embed_token"`` if the model closed its reasoning itself; ``"length"`` if the token was
            appended because the budget was used up or the model ended its turn without it; ``"nothing_to_add"`` if
            the vector is the encoder's; ``"given"`` if all of it was given to the model.
        prompt_tokens: Length of the prompt in tokens, template included.
        reasoning_tokens: Number of tokens of the reasoning, the embed token not counted.
        reasoning_ids: Their ids, the embed token not included. Given to the same model, they lead to the same vector.
        embedding: Float32 array of shape (dimension,).
        given_tokens: How many of the reasoning's tokens, the first ones, were given and not written.
    """

    text: str
    reasoning: str
    finish_reason: str
    prompt_tokens: int
    reasoning_tokens: int
    reasoning_ids: list[int]
    embedding: np.ndarray
    given_tokens: int = 0


def traces(
    texts: Sequence[str],
    prompts: Sequence[Sequence[int]],
    generations: Sequence[Any],
    vectors: np.ndarray,
    decode: Callable[[Sequence[int]], str],
    finish_reason: Callable[[Any], str],
) -> list[Reasoning]:
    """What is told about each text.

    Args:
        texts: As given.
        prompts: What the thinker read, as token ids.
        generations: What the engine's loop returned.
        vectors: Float32, shape (texts, dimension).
        decode: Token ids into text.
        finish_reason: Of a generation.
    """
    return [
        Reasoning(
            text=str(text),
            reasoning=decode(generation.ids),
            finish_reason=finish_reason(generation),
            prompt_tokens=len(ids),
            reasoning_tokens=len(generation.ids),
            reasoning_ids=generation.ids,
            embedding=vector,
            given_tokens=generation.given,
        )
        for text, ids, generation, vector in zip(texts, prompts, generations, vectors, strict=True)
    ]
