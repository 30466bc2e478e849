"""A small corpus whose questions hold words that say nothing, which a question side can learn to leave aside."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

NOUNS = (
    "csv file column river paris glacier stone valley bank inflation heart artery vein width height question".split()
)
# Few different words: questions that share most of theirs hang together, and are never split.
NOISE = "symptoms adults symptoms adults symptoms adults symptoms adults"


def documents(count: int = 60) -> dict[str, str]:
    """Texts of three words."""
    triples = list(itertools.combinations(NOUNS, 3))
    chosen = random.Random(0).sample(triples, count)
    return {f"d{number}": " ".join(words) for number, words in enumerate(chosen)}


def pairs(count: int = 60) -> list[tuple[str, str]]:
    """The words of a document between words that are always the same."""
    return [(f"{NOISE} {text}", name) for name, text in documents(count).items()]


def random_pairs(count: int = 60) -> list[tuple[str, str]]:
    """Questions and documents that have nothing to do with one another."""
    names = list(documents(count))
    random.Random(1).shuffle(names)
    return [(question, name) for (question, _), name in zip(pairs(count), names, strict=True)]


def write(folder: Path, some: list[tuple[str, str]]) -> tuple[Path, Path]:
    """The corpus and its pairs as files."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus, questions = folder / "corpus.jsonl", folder / "pairs.jsonl"
    corpus.write_text("".join(json.dumps({"id": k, "text": v}) + "\n" for k, v in documents(len(some)).items()))
    questions.write_text("".join(json.dumps({"question": q, "chosen": d}) + "\n" for q, d in some))
    return corpus, questions
