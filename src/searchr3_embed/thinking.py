"""Questions in, reasonings with their states out: what both kinds of checkpoint ask of the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

from transformers import PreTrainedModel

from searchr3_embed import given_reasoning
from searchr3_embed.conversation import Conversation
from searchr3_embed.engine import decode
from searchr3_embed.engine.forward import Thinker
from searchr3_embed.given_reasoning import Given


def think(
    thinker: PreTrainedModel | Thinker,
    stops: Sequence[int],
    conversation: Conversation,
    questions: Sequence[str],
    given: Sequence[Given | None],
    max_reasoning_tokens: int | None,
    *,
    continue_reasoning: bool = False,
    batch_size: int = 32,
    progress: Callable[[int], object] | None = None,
    on_token: Callable[[int, int], object] | None = None,
) -> tuple[list[list[int]], list[decode.Generation]]:
    """Writes a reasoning for each question, or reads the one that is given, up to the embed token.

    Args:
        thinker: The model, as the engine takes it.
        stops: Tokens that end its turn.
        conversation: The words around a question.
        questions: As they stand in the turn.
        given: The reasoning of each; None where the model writes it.
        max_reasoning_tokens: Most tokens that the model writes; None takes the checkpoint's.
        continue_reasoning: Whether it goes on after what is given.
        batch_size: Rows computed at once.
        progress: Called with the number of questions done since the last call.
        on_token: Called with a question's place and each token as it is written.

    Returns:
        The prompts as token ids, and what stands behind each.

    Raises:
        TypeError: A question is no text, or the budget no integer.
        ValueError: The budget is out of range, or a text can't be read.
    """
    budget = conversation.check_budget(max_reasoning_tokens)
    prompts = conversation.reasoning_ids(questions, budget)
    words = given_reasoning.token_ids(given, prompts, conversation)
    ends = conversation.embed_token_id
    options: dict[str, Any] = {"embed_token_id": ends, "batch_size": batch_size, "progress": progress}
    found: dict[int, decode.Generation] = {}
    if reading := [] if continue_reasoning else [row for row, one in enumerate(given) if one is not None]:
        turns = [prompts[row] for row in reading]
        read = decode.read_given(thinker, turns, [words[row] for row in reading], **options)
        for row, generation in zip(reading, read, strict=True):
            found[row] = dataclasses.replace(generation, finished=not cast(Given, given[row]).cut_off)
    if writing := [row for row in range(len(questions)) if row not in found]:
        rooms = [conversation.position_limit - len(prompts[row]) - len(words[row]) - 1 for row in writing]
        written = decode.think(
            thinker,
            [prompts[row] for row in writing],
            given=[words[row] for row in writing],
            max_new_tokens=[min(budget, room) for room in rooms],
            stop_token_ids=stops,
            distinct=conversation.prompts.distinct_tokens,
            on_token=_in_places(on_token, writing),
            **options,
        )
        found |= dict(zip(writing, written, strict=True))
    return prompts, [found[row] for row in range(len(questions))]


def _in_places(
    on_token: Callable[[int, int], object] | None, places: Sequence[int]
) -> Callable[[int, int], object] | None:
    """Calls with the places that questions have among all."""
    if on_token is None:
        return None
    tell = on_token
    return lambda place, token: tell(places[place], token)
