"""Reasoning that is already there: an agent's words, a ``Reasoning`` of ours, or token ids, each with its question.

A question and its words travel as one item, so that sorting, pools and batches of several calls keep them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from searchr3_embed.conversation import Conversation, report_truncation
from searchr3_embed.files import check_unicode, shorten
from searchr3_embed.reasoning_trace import Reasoning

_ACCEPTED = "a str, a Reasoning, a sequence of token ids, or None for a question that the model thinks about itself"


@dataclasses.dataclass(frozen=True)
class Given:
    """What stands in place of the words that the model would write.

    Attributes:
        words: A text, or token ids that are taken as they are.
        cut_off: Whether a budget ended it, and not whoever wrote it: where it is empty, that is a difference.
    """

    words: str | tuple[int, ...]
    cut_off: bool = False


class TextWithReasoning(str):
    """A text, and what was already thought about it.

    Attributes:
        given: The reasoning.
    """

    given: Given

    @classmethod
    def of(cls, text: str, given: Given) -> TextWithReasoning:
        """Joins the two."""
        joined = cls(text)
        joined.given = given
        return joined

    def __eq__(self, other: object) -> bool:
        # Not the same as the bare text: whoever looks for texts that he knows must not take one for the other.
        return isinstance(other, TextWithReasoning) and str.__eq__(self, other) and self.given == other.given

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((str.__hash__(self), self.given))


def given_in(texts: Sequence[str]) -> list[Given | None]:
    """The reasoning that comes with each text, None where there is none."""
    return [text.given if isinstance(text, TextWithReasoning) else None for text in texts]


def attach(texts: Sequence[str], reasoning: Any, single: bool, conversation: Conversation) -> list[str]:
    """The texts, each with its reasoning.

    Args:
        texts: The texts, checked already.
        reasoning: For a single text one reasoning, else one for each text; None for none at all.
        single: Whether the caller gave a single text.
        conversation: Knows which token ids there are.

    Raises:
        TypeError: A reasoning is of another kind.
        ValueError: There are not as many as texts, or one can't be read.
    """
    if reasoning is None:
        return list(texts)
    if single:
        items: list[Any] = [reasoning]
    elif isinstance(reasoning, str | bytes | Reasoning) or not isinstance(reasoning, Sequence | np.ndarray):
        raise TypeError(
            f"reasoning must be a list with one entry for each of the {len(texts)} texts, got "
            f"{shorten(repr(reasoning), 80)} of type {type(reasoning).__name__}."
        )
    else:
        items = list(reasoning)
    if len(items) != len(texts):
        raise ValueError(f"reasoning must have one entry for each of the {len(texts)} texts, got {len(items)}.")
    taken = [_take(item, "reasoning" if single else f"reasoning[{i}]", conversation) for i, item in enumerate(items)]
    return [
        text if given is None else TextWithReasoning.of(text, given) for text, given in zip(texts, taken, strict=True)
    ]


def token_ids(
    given: Sequence[Given | None], prompts: Sequence[Sequence[int]], conversation: Conversation
) -> list[list[int]]:
    """The tokens of each reasoning, control tokens in a text read as plain text, cut at the end where it is too long.

    The prompts are those of thinking, so the words never cost a question a token: they have what remains.

    Args:
        given: The reasonings; None gives no tokens.
        prompts: The turns as token ids, up to where an answer goes on.
        conversation: Reads the texts.

    Raises:
        ValueError: One is too long while ``on_truncate`` is ``"error"``.
    """
    texts = [row for row, one in enumerate(given) if one is not None and isinstance(one.words, str)]
    read = dict(zip(texts, conversation.text_ids([str(_words(given[row])) for row in texts]), strict=True))
    found = [read[row] if row in read else [*map(int, _words(one))] for row, one in enumerate(given)]
    # One position is kept for the embed token.
    rooms = [conversation.position_limit - len(prompt) - 1 for prompt in prompts]
    long = [row for row, (ids, room) in enumerate(zip(found, rooms, strict=True)) if len(ids) > room]
    if long:
        room = min(rooms[row] for row in long)
        report_truncation(
            [len(ids) if row in long else 0 for row, ids in enumerate(found)],
            room,
            conversation.on_truncate,
            what="given reasonings",
            remedy="Give fewer words",
        )
    return [ids[:room] for ids, room in zip(found, rooms, strict=True)]


def _words(given: Given | None) -> Any:
    return () if given is None else given.words


def _take(item: Any, name: str, conversation: Conversation) -> Given | None:
    if item is None:
        return None
    if isinstance(item, str):
        return Given(check_unicode(item, name))
    if isinstance(item, Reasoning):
        ids: Any = item.reasoning_ids
        cut_off = item.finish_reason == "length"
    else:
        ids, cut_off = item, False
    if not isinstance(ids, Sequence | np.ndarray) or isinstance(ids, bytes | bytearray):
        raise TypeError(f"{name} must be {_ACCEPTED}, got {shorten(repr(item), 80)} of type {type(item).__name__}.")
    return Given(_checked(list(ids), name, conversation), cut_off)


def _checked(ids: list[Any], name: str, conversation: Conversation) -> tuple[int, ...]:
    size = conversation.vocabulary
    for place, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, int | np.integer):
            raise TypeError(
                f"{name} must be {_ACCEPTED}; its item {place} is {shorten(repr(token), 80)}, which is no token id."
            )
        if not 0 <= token < size:
            raise ValueError(f"{name} holds the token id {token}; this model has the ids from 0 to {size - 1}.")
        if token == conversation.embed_token_id:
            raise ValueError(
                f"{name} holds the embed token ({token}) at place {place}: it is put behind the reasoning, and must "
                "not stand in it."
            )
    return tuple(map(int, ids))
