"""What decides the run, and the corpus and the queries that it draws."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.beir import read_beir
from training.data.lines import DataError
from training.data.reading import load
from training.data.records import Record


@dataclass(frozen=True)
class Setting:
    """What decides the run; a run goes on only with the same."""

    data: str
    records: str
    model: str
    steps: int
    documents: int | None
    document_tokens: int
    full_every: int
    queries: int
    group: int
    learning_rate: float
    beta: float
    temperature: float
    seed: int
    environments: dict[str, dict[str, Any]]


def draw(
    data: Path, records: Path, documents: int | None, queries: int, seed: int
) -> tuple[list[str], list[Record], dict[str, int]]:
    """A corpus and training queries that it answers.

    Returns:
        The documents, ``queries`` records (again from the start when there are fewer), and text -> document number.

    Raises:
        DataError: No record's positives are all in the corpus, or ``documents`` cannot hold the positives.
    """
    corpus = list(dict.fromkeys(read_beir(data).documents.values()))
    known = set(corpus)
    found = load({str(records): 1.0}, None, exclude=[data]).sources[str(records)]
    usable = [record for record in found if known.issuperset(record.positives)]
    if not usable:
        raise DataError(f"{records}: no record whose positives are all in {data}")
    rng = random.Random(seed)
    rng.shuffle(usable)
    chosen = [usable[i % len(usable)] for i in range(queries)]
    if documents is not None and documents < len(corpus):
        needed = list(dict.fromkeys(text for record in chosen for text in record.positives))
        if documents < len(needed):
            raise DataError(f"--documents {documents}: the {len(chosen)} queries have {len(needed)} positives")
        kept = {*needed, *rng.sample([text for text in corpus if text not in set(needed)], documents - len(needed))}
        corpus = [text for text in corpus if text in kept]
    return corpus, chosen, {text: i for i, text in enumerate(corpus)}
