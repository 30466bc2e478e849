"""Pairs where there are none: sentences of the corpus itself, or questions that a language model writes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchr3_embed.adapt import chat_client, synthesis
from searchr3_embed.adapt.corpus import Documents
from searchr3_embed.adapt.pairs import Pairs
from searchr3_embed.adapt.same_text import first_of_kind
from searchr3_embed.adapt.sentences import asks, sentences

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder

_MOST_WORDS = 300
_LEAST_WORDS = 10


def from_text(documents: Documents, most: int, seed: int) -> Pairs:
    """A sentence of a document is the question for it.

    Args:
        documents: The corpus.
        most: Most pairs, drawn at random.
        seed: Of the draw.

    Raises:
        ValueError: No document has a sentence to ask with.
    """
    rng = random.Random(seed)
    found: list[tuple[str, int]] = []
    for row, text in enumerate(documents.bare):
        parts = [part for line in text.split("\n") for part in sentences(line)]
        total = sum(len(part.split()) for part in parts)
        able = [part for part in parts if asks(part, total)]
        if able:
            found.append((rng.choice(able), row))
    if not found:
        raise ValueError(
            "No document has a sentence to ask with: one of 5 to 40 words, mostly letters, beside at least 10 others."
        )
    silent = len(documents.ids) - len(found)
    return _distinct(rng.sample(found, min(most, len(found))), {"document without a sentence to ask with": silent})


def synthesised(
    documents: Documents,
    embedder: ReasoningEmbedder,
    endpoint: chat_client.Endpoint,
    store: Path,
    passages: int,
    seed: int,
) -> Pairs:
    """A language model writes two questions for each of some documents; what the filter refuses is left out.

    Args:
        documents: The corpus.
        embedder: Checks that a document is nearer to its question than passages that the model wrote not to answer it.
        endpoint: Where the model is.
        store: File of its answers; they are kept, so that a kill costs none of them.
        passages: How many documents are shown to it.
        seed: Of the draw.

    Raises:
        LLMError: The server refuses or can't be reached.
        ValueError: No question is left.
    """
    counts: Counter[str] = Counter()
    rows = {text: row for row, text in enumerate(documents.texts)}
    able = [text for text in rows if len(text.split()) >= _LEAST_WORDS]
    counts["document too short to ask about"] = len(documents.texts) - len(able)
    chosen = synthesis.sample(able, passages, seed)
    asked = synthesis.conversations(chosen, synthesis.SYSTEM_PROMPT, 2, 2, False, _MOST_WORDS)
    answers = chat_client.ask(asked, synthesis.parse_triples, endpoint, store)
    counts["document without a readable answer"] = sum(some is None for some in answers.values)
    triples = [(text, triple) for text, some in zip(chosen, answers.values, strict=True) for triple in some or ()]
    if not triples:
        raise ValueError(f"The language model wrote no readable question: {answers.summary()}.")
    kept = synthesis.beaten_negatives(
        [triple.query for _, triple in triples],
        [text for text, _ in triples],
        [triple.negatives for _, triple in triples],
        _ByEncoder(embedder),
        counts,
    )
    del counts["negative closer than the positive"]
    counts["question that its document does not answer best"] = sum(not some for some in kept)
    found = [(triple.query, rows[text]) for (text, triple), some in zip(triples, kept, strict=True) if some]
    if not found:
        raise ValueError(f"No synthetic question passed the filter ({len(triples)} were written).")
    return _distinct(found, counts)


class _ByEncoder:
    """The encoder alone, as the check of synthesis asks for it."""

    def __init__(self, embedder: ReasoningEmbedder) -> None:
        self.embedder = embedder

    def encode_query(self, texts: list[str], **options: Any) -> Any:
        return self.embedder.encode_query(texts, reason=False, **options)

    def encode_document(self, texts: list[str], **options: Any) -> Any:
        return self.embedder.encode_document(texts, **options)


def _distinct(found: list[tuple[str, int]], counts: Mapping[str, int]) -> Pairs:
    new = first_of_kind([question for question, _ in found])
    kept = [pair for pair, first in zip(found, new, strict=True) if first]
    repeated = tuple(question for (question, _), first in zip(found, new, strict=True) if not first)
    # What has no name of its own is counted by dashes, so that numbers stay right.
    dropped = {reason: ("-",) * count for reason, count in counts.items() if count}
    if repeated:
        dropped["question close to an earlier one"] = repeated
    return Pairs(tuple(question for question, _ in kept), tuple((row,) for _, row in kept), len(found), dropped)
