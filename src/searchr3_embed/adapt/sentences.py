"""Sentences of a text, and which of them can stand for a question (the inverse cloze task)."""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]?[A-Z0-9])")
# Fewer words say too little to ask with; of more, the embedder would cut some.
_QUERY_WORDS = range(5, 41)
# What is left of a passage without its question.
_LEAST_REST = 10


def sentences(paragraph: str) -> list[str]:
    """A paragraph cut after full stops, question and exclamation marks that something like a new sentence follows."""
    return [part for part in _SENTENCE_END.split(" ".join(paragraph.split())) if part]


def asks(sentence: str, total: int) -> bool:
    """Whether a sentence can be the question for a passage of ``total`` words that holds it."""
    words = len(sentence.split())
    letters = sum(character.isalpha() or character.isspace() for character in sentence)
    return words in _QUERY_WORDS and total - words >= _LEAST_REST and letters >= 0.8 * len(sentence)
