"""Lays out what one step of stage 1 reads: its turns, which of them are taught, which documents answer whom."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from searchr3_embed.conversation import Conversation
from training.data.records import Record


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one step trains on; all ids are bare text ids, without template.

    Attributes:
        records: The records, all different rows.
        documents: One positive of each record in the same order, then the negatives of all.
        query_bodies: Token ids of the queries.
        document_bodies: Token ids of the documents.
        reasonings: Token ids of each record's reasoning target; None where the record has none.
        position: Place of the first record in the order of training; it seeds everything random in the step.
    """

    records: list[Record]
    documents: list[str]
    query_bodies: list[list[int]]
    document_bodies: list[list[int]]
    reasonings: list[list[int] | None]
    position: int


@dataclasses.dataclass(frozen=True)
class Collator:
    """Makes a batch out of rows in the order of training; the same rows always give the same batch.

    Attributes:
        records: All training records; rows are numbers into it.
        conversation: Turns texts into token ids.
        query_length: Most tokens of a query.
        document_lengths: Most tokens of a document -> share of steps with that limit.
        negatives: Most explicit negatives of a record in one step.
        seed: Of the run.
    """

    records: Sequence[Record]
    conversation: Conversation
    query_length: int
    document_lengths: Mapping[int, float]
    negatives: int
    seed: int

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """Returns ``{"batch": Batch}`` for rows ``{"position", "row"}``."""
        position = rows[0]["position"]
        rng = random.Random(f"{self.seed}/{position}")
        chosen = [self.records[row["row"]] for row in rows]
        documents = [rng.choice(record.positives) for record in chosen]
        for record in chosen:
            documents += rng.sample(record.negatives, min(self.negatives, len(record.negatives)))
        length = rng.choices(list(self.document_lengths), list(self.document_lengths.values()))[0]
        ids = self.conversation.text_ids
        targets = iter(ids([record.reasoning for record in chosen if record.reasoning is not None]))
        batch = Batch(
            records=chosen,
            documents=documents,
            query_bodies=[body[: self.query_length] for body in ids([record.query for record in chosen])],
            document_bodies=[body[:length] for body in ids(documents)],
            reasonings=[None if record.reasoning is None else next(targets) for record in chosen],
            position=position,
        )
        return {"batch": batch}


@dataclasses.dataclass(frozen=True)
class Turn:
    """One row of a forward pass; the embedding is the state at its last token.

    Attributes:
        prompt: What the model reads.
        answer: What follows, the embed token last.
        taught: Whether the model learns to write the answer.
    """

    prompt: list[int]
    answer: list[int]
    taught: bool

    @property
    def ids(self) -> list[int]:
        """The whole turn."""
        return self.prompt + self.answer


@dataclasses.dataclass(frozen=True)
class View:
    """One way of embedding queries.

    Attributes:
        name: "direct", "target" (reasoning as in the record) or "own" (reasoning that the model wrote).
        first: Number of the first turn.
        queries: Numbers of the records that the turns from ``first`` on belong to.
    """

    name: str
    first: int
    queries: list[int]

    @property
    def rows(self) -> slice:
        """The turns of this view."""
        return slice(self.first, self.first + len(self.queries))


def lay_out(
    batch: Batch,
    conversation: Conversation,
    own: Mapping[int, list[int]],
    targets: bool = True,
    teach_direct: bool = True,
) -> tuple[list[Turn], list[View], slice]:
    """All turns of a step.

    Args:
        batch: The texts.
        conversation: The words around them.
        own: Record number -> token ids of the reasoning that the model wrote for it.
        targets: Whether to lay out the reasoning targets.
        teach_direct: Whether the model learns to write the fixed answer of the queries' direct turns.

    Returns:
        The turns, the views of the queries in them, and which turns are the documents'.
    """
    suffix = conversation.direct_affixes[1]
    cut = -len(suffix)
    turns = [Turn(turn[:cut], suffix, teach_direct) for turn in conversation.direct_turns(batch.query_bodies)]
    views = [View("direct", 0, list(range(len(turns))))]
    documents = slice(len(turns), len(turns) + len(batch.document_bodies))
    turns += [Turn(turn[:cut], suffix, taught=False) for turn in conversation.direct_turns(batch.document_bodies)]
    prompts = conversation.reasoning_turns(batch.query_bodies)
    end = [conversation.embed_token_id]
    written = {i: ids for i, ids in enumerate(batch.reasonings) if ids is not None} if targets else {}
    for name, answers in (("target", written), ("own", own)):
        if answers:
            views.append(View(name, len(turns), list(answers)))
            turns += [Turn(prompts[i], ids + end, taught=name == "target") for i, ids in answers.items()]
    return turns, views, documents


@dataclasses.dataclass(frozen=True)
class Answers:
    """Which documents answer which queries. A number stands for each text, so that processes exchange little.

    Attributes:
        documents: The number of each document, positives of the records first.
        positives: The numbers of all documents that answer each query.
    """

    documents: list[int]
    positives: list[frozenset[int]]

    @classmethod
    def of(cls, batch: Batch) -> Answers:
        """Of the records and documents of a batch."""
        return cls(
            [_number(text) for text in batch.documents],
            [frozenset(map(_number, record.positives)) for record in batch.records],
        )

    def excluded(self, documents: Sequence[int]) -> Tensor:
        """True where a document answers a query, bool of shape (queries, documents)."""
        rows = [[document in positives for document in documents] for positives in self.positives]
        return torch.tensor(rows, dtype=torch.bool).reshape(len(self.positives), len(documents))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
