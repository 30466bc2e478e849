"""Keeps a part of the questions apart so that nothing leaks: no document, no nearly equal question is shared."""

from __future__ import annotations

import random
from collections.abc import Sequence

from searchr3_embed.adapt.pairs import Pairs
from searchr3_embed.adapt.same_text import QueryIndex

# A part is larger than what was asked for by at most this share of it.
_SLACK = 0.25


def components(pairs: Pairs) -> list[list[int]]:
    """Questions that hang together: by a document that answers both, or because they are nearly equal.

    Returns:
        The numbers of the questions, each once, groups in the order of their first question.
    """
    parent = list(range(len(pairs)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    owner: dict[int, int] = {}
    index = QueryIndex(pairs.questions)
    for number, (question, answers) in enumerate(zip(pairs.questions, pairs.answers, strict=True)):
        for row in answers:
            parent[root(number)] = root(owner.setdefault(row, number))
        for near in index.near(question):
            parent[root(number)] = root(near)
        index.add(question)
    groups: dict[int, list[int]] = {}
    for number in range(len(pairs)):
        groups.setdefault(root(number), []).append(number)
    return list(groups.values())


def split(pairs: Pairs, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the questions to train with, and of those that are kept apart.

    Args:
        pairs: At least two questions that do not hang together.
        share: What part of the questions is kept apart.
        seed: Of the draw.

    Raises:
        ValueError: All questions hang together, so that no part can be kept apart.
    """
    groups = components(pairs)
    random.Random(seed).shuffle(groups)
    wanted = max(1, round(share * len(pairs)))
    apart: list[int] = []
    for group in groups:
        if len(apart) + len(group) <= max(1, wanted * (1 + _SLACK)) and len(apart) < wanted:
            apart += group
    training = sorted(set(range(len(pairs))) - set(apart))
    if not apart or not training:
        raise ValueError(
            f"The {len(pairs)} questions can't be split into two parts that share no document: "
            f"{_largest(groups)} of them hang together. Add pairs about other documents."
        )
    return training, sorted(apart)


def _largest(groups: Sequence[Sequence[int]]) -> int:
    return max(map(len, groups))
