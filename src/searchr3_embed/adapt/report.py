"""What adapting found: numbers for machines, sentences for people, a picture, a model card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchr3_embed.adapt.pairs import NAMES_SHOWN, Pairs

REPORT_FILE, PLOT_FILE, CARD_FILE = "report.json", "adapt.png", "README.md"
CHANGED_SHOWN = 10
FEW_PAIRS = 100


@dataclasses.dataclass(frozen=True)
class Change:
    """One kept question before and after."""

    question: str
    before: float
    after: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What adapting found.

    Attributes:
        trained: What was trained: ``thinker``, ``question-encoder`` or ``projection``.
        encoder: The encoder's name.
        better: Whether the kept questions find more than before, beyond chance.
        written: Whether there is a model to write.
        encoder_ndcg: Mean nDCG@10 of the kept questions by the encoder alone.
        before: By the model as it was given.
        after: By the adapted one.
        p_value: Of the paired randomisation test of after against the better of the two others.
        training_questions: How many were trained on.
        kept_questions: How many were kept apart.
        documents: How many the corpus has.
        vectors: Where the documents' vectors came from.
        dropped: What was left out of pairs and documents, by the reason: the number, and some names.
        pairs: How the pairs were made: ``given``, ``synthesised`` or ``from the text``.
        chosen: The chosen rate and distance; None where nothing was better.
        evaluations: Every look at the kept questions.
        gained: The questions that gained most.
        lost: Those that lost most.
        general_distance: Mean 1 - cosine by which general questions moved from the encoder's vector.
        general_furthest: The one that moved most, and how far.
        seconds: Of training.
        candidates: What was tried, by the numbers in ``evaluations``.
        notes: Sentences for people.
    """

    trained: str
    encoder: str
    better: bool
    written: bool
    encoder_ndcg: float
    before: float
    after: float
    p_value: float
    training_questions: int
    kept_questions: int
    documents: int
    vectors: Mapping[str, int]
    dropped: Mapping[str, Mapping[str, Any]]
    pairs: str
    chosen: str | None
    evaluations: Sequence[Mapping[str, Any]]
    gained: Sequence[Change]
    lost: Sequence[Change]
    general_distance: float
    general_furthest: tuple[str, float]
    seconds: float
    candidates: Sequence[str] = ()
    notes: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def lines(self) -> list[str]:
        """The report for people."""
        left_out = [
            f"left out: {row['count']:,} {reason} ({'; '.join(row['names'][:3])}{' ...' if row['count'] > 3 else ''})"
            for reason, row in self.dropped.items()
        ]
        origin = ", ".join(f"{count:,} {name}" for name, count in self.vectors.items())
        result = [
            f"{self.documents:,} documents ({origin}); {self.training_questions:,} questions to learn from, "
            f"{self.kept_questions:,} kept apart",
            *left_out,
            *self.notes,
            f"nDCG@10 of the kept questions: encoder {self.encoder_ndcg:.4f}, before {self.before:.4f}, after "
            f"{self.after:.4f} (p = {self.p_value:.4f})",
            f"trained: {self.trained}, {self.chosen or 'nothing was better'}, {self.seconds:.0f} s",
        ]
        if self.chosen:
            result.append(
                f"general questions moved by {self.general_distance:.4f} (1 - cosine; most: "
                f"{self.general_furthest[1]:.4f}, {self.general_furthest[0]!r})"
            )
            for name, rows in (("gained", self.gained), ("lost", self.lost)):
                result += [f"{name}: {row.before:.2f} -> {row.after:.2f}  {row.question}" for row in rows]
        return result


def counted(dropped: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """What was left out, as a report holds it."""
    return {reason: {"count": len(names), "names": list(names[:NAMES_SHOWN])} for reason, names in dropped.items()}


def changes(kept: Pairs, before: np.ndarray, after: np.ndarray) -> tuple[list[Change], list[Change]]:
    """The questions that gained most, and those that lost most."""
    rows = [
        Change(q, round(float(b), 4), round(float(a), 4))
        for q, b, a in zip(kept.questions, before, after, strict=True)
    ]
    gained = sorted((row for row in rows if row.after > row.before), key=lambda row: row.before - row.after)
    lost = sorted((row for row in rows if row.after < row.before), key=lambda row: row.after - row.before)
    return gained[:CHANGED_SHOWN], lost[:CHANGED_SHOWN]


def plot(report: Report, path: Path) -> None:
    """Left: every look at the kept questions. Right: before and after, and what changed question by question."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4), layout="constrained", dpi=150)
    course, bars = figure.subplots(1, 2, width_ratios=[2, 1])
    for number, name in enumerate(report.candidates):
        rows = [row for row in report.evaluations if row["candidate"] == number]
        if rows:
            course.plot(
                [0, *(row["step"] for row in rows)], [report.before, *(row["ndcg"] for row in rows)], label=name
            )
    course.axhline(report.encoder_ndcg, color="grey", linestyle=":", label="encoder")
    course.set_xlabel("step")
    course.set_ylabel("nDCG@10 of the kept questions")
    course.legend(frameon=False, fontsize=8)
    drawn = bars.bar(["encoder", "before", "after"], [report.encoder_ndcg, report.before, report.after])
    bars.bar_label(drawn, fmt="%.3f", padding=2)
    bars.set_ylim(0, 1.08)
    bars.set_title(f"p = {report.p_value:.4f}", fontsize=9)
    with path.open("wb") as file:
        figure.savefig(file, format="png")


def card(report: Report) -> str:
    """The model card."""
    ways = {
        "thinker": "The thinker beside the encoder was trained further; its default budget of written tokens is 0.",
        "question-encoder": "Questions are read by a trained copy of the encoder, the route `query` of a `Router`.",
        "projection": "A question's vector is changed by one matrix, the last `Dense` of the route `query`.",
    }
    gained = "\n".join(f"* {row.before:.2f} -> {row.after:.2f}: {row.question}" for row in report.gained)
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, searchr3, adapted]
---

# {report.encoder}, adapted to a corpus

Made by `searchr3 adapt` from {report.documents:,} documents and {report.training_questions:,} questions (pairs:
{report.pairs}). {ways[report.trained]} **Documents keep the vectors of {report.encoder}**, to the bit: an index of
theirs stays valid.

```python
from searchr3_embed import ReasoningEmbedder

embedder = ReasoningEmbedder("this folder")
question, documents = embedder.encode_query("a question"), embedder.encode_document(["a document"])
```

| nDCG@10 of {report.kept_questions:,} questions that were kept apart | |
|---|---|
| encoder | {report.encoder_ndcg:.4f} |
| before | {report.before:.4f} |
| after | {report.after:.4f} |

They share no document and no nearly equal question with those that were trained on.

Paired randomisation test: p = {report.p_value:.4f}. The kept questions also chose when to stop ({report.chosen}), so
the gain is a little flattered. General questions moved by {report.general_distance:.4f} (1 - cosine): outside of this
corpus the model is that much another one. `report.json` holds everything, `adapt.png` the course of the training.

Gained most:

{gained or "(none)"}
"""
