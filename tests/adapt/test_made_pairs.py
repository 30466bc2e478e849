"""Pairs where there are none: sentences of the corpus, questions of a language model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.adapt.chat_client import Endpoint
from searchr3_embed.adapt.corpus import documents_of
from searchr3_embed.adapt.made_pairs import from_text, synthesised
from tests.training.prepare.chat_server import Reply, chat_server

TEXTS = {
    "ice": "A glacier is a slow river of ice. It carves wide valleys and carries many stones down to the sea.",
    "money": "Rates rise when the bank fears inflation again. Savings grow then, but all loans cost more than before.",
    "short": "Too short.",
}
DOCUMENTS = documents_of(TEXTS)


def test_a_sentence_asks_for_the_document_that_holds_it() -> None:
    found = from_text(DOCUMENTS, 10, 0)
    assert len(found) == 2 and len(found.dropped["document without a sentence to ask with"]) == 1
    for question, (row,) in zip(found.questions, found.answers, strict=True):
        assert question in DOCUMENTS.texts[row]
    assert len(from_text(DOCUMENTS, 1, 0)) == 1
    with pytest.raises(ValueError, match="No document has a sentence to ask with"):
        from_text(documents_of({"a": "Too short."}), 10, 0)


def test_a_language_model_writes_what_the_filter_lets_through(encoder: Path, tmp_path: Path) -> None:
    embedder = ReasoningEmbedder.from_encoder(encoder, device="cpu")

    def write(text: str, seen: int) -> Reply:
        if "inflation" in text:
            return Reply("I'd rather not.")
        triples = [
            {"query": TEXTS["ice"][:60], "hard_negatives": ["0 1 2 3 4 5 6 7 8 9 10 100"]},
            {"query": "paris", "hard_negatives": ["paris"]},  # nearer than the document: it may well be the answer
        ]
        return Reply(json.dumps({"triples": triples}))

    with chat_server(write) as server:
        given = DOCUMENTS, embedder, Endpoint(server.base_url, "m", attempts=1), tmp_path / "answers.jsonl", 5, 0
        found = synthesised(*given)
        asked = len(server.bodies)
        assert synthesised(*given) == found and len(server.bodies) == asked == 2  # nothing is asked twice
    assert found.questions == (TEXTS["ice"][:60].strip(),) and found.answers == ((0,),)
    assert {reason: len(names) for reason, names in found.dropped.items()} == {
        "document too short to ask about": 1,
        "document without a readable answer": 1,
        "question that its document does not answer best": 1,
    }
