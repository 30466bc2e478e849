"""Questions beside an encoder that nobody touches: the corpus as constants, and how a state moves a vector.

Both stages use it: the softmax of stage 1 and the reward of stage 2 run over all documents, exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.adapt.same_text import document_key
from searchr3_embed.adapt.trainable_thinker import projection_weight
from searchr3_embed.conversation import Conversation
from searchr3_embed.engine import decode
from searchr3_embed.engine.one_pass import OnePassThinker
from searchr3_embed.kinds import encoder_with_thinker
from searchr3_embed.question_side import ENCODER, nothing_to_add, offsets
from training.data.beir import BeirData
from training.data.records import Record
from training.evaluate.metrics import NDCG, dense_rows, rank, score
from training.shared.dev_scores import Judge
from training.shared.vectors_on_disk import vectors_on_disk


@dataclasses.dataclass(frozen=True)
class DevSet:
    """A set to choose by, with the encoder's vectors of its documents and questions."""

    data: BeirData
    documents: np.ndarray
    questions: np.ndarray


@dataclasses.dataclass
class Questions:
    """What a run knows beside the thinker's weights.

    Attributes:
        conversation: The thinker's words.
        encoder: The encoder's network, if the thinker works on its pass; else None.
        documents: Vectors of all training documents, float32 of shape (documents, dimension).
        vectors: The encoder's vectors of the questions, by their text.
        numbers: The number of each document, by :func:`searchr3_embed.adapt.same_text.document_key`.
        positives: The numbers of the documents that answer each question, in any record of it, by its text.
        normalise: Whether the encoder's pipeline brings vectors to length 1.
    """

    conversation: Conversation
    encoder: PreTrainedModel | None
    documents: Tensor
    vectors: Mapping[str, Tensor]
    numbers: Mapping[str, int]
    positives: Mapping[str, list[int]]
    normalise: bool

    @classmethod
    def of(
        cls, embedder: ReasoningEmbedder, records: Iterable[Record], folder: Path, more: Iterable[str] = ()
    ) -> Questions:
        """Embeds, or reads from disk, all documents and questions of records, and more documents."""
        rows = list(records)
        numbers: dict[str, int] = {}
        texts: list[str] = []
        for text in (*(text for record in rows for text in (*record.positives, *record.negatives)), *more):
            if numbers.setdefault(document_key(text), len(texts)) == len(texts):
                texts.append(text)
        asked = list(dict.fromkeys(record.query for record in rows))
        documents = vectors_on_disk(embedder.encode_document, texts, folder, "documents")
        questions = vectors_on_disk(lambda part: embedder.encode_query(part, reason=False), asked, folder, "questions")
        positives: dict[str, set[int]] = {}
        for record in rows:
            known = positives.setdefault(record.query, set())
            known.update(numbers[document_key(text)] for text in record.positives)
        side = embedder.question_side
        assert side is not None
        return cls(
            side.conversation,
            encoder_with_thinker.transformer(embedder) if side.base == ENCODER else None,
            torch.from_numpy(np.array(documents)),
            dict(zip(asked, torch.from_numpy(np.array(questions)), strict=True)),
            numbers,
            {query: sorted(known) for query, known in positives.items()},
            encoder_with_thinker.normalises(embedder),
        )

    def to(self, device: torch.device) -> None:
        """Moves the encoder and the documents to where the thinker is trained."""
        self.documents = self.documents.to(device)
        if self.encoder is not None:
            cast(Any, self.encoder).to(device).eval().requires_grad_(False)

    def moved(
        self, records: Sequence[Record], owners: Sequence[int], states: Tensor, model: Any
    ) -> tuple[Tensor, Tensor]:
        """The vectors after thinking, and the encoder's own, each of shape (rows, dimension).

        Args:
            records: Of the batch.
            owners: The record of each row.
            states: At the embed tokens, shape (rows, hidden size).
            model: The language model, with its ``query_projection``.
        """
        base = torch.stack([self.vectors[records[row].query] for row in owners]).to(states.device)
        # Through the module, so that PEFT trains its copy of it.
        moved = base + model.query_projection(F.normalize(states.float(), dim=-1))
        return F.normalize(moved, dim=-1) if self.normalise else moved, base

    def answers(
        self, records: Sequence[Record], chosen: Sequence[str], owners: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The number of each row's document, and which documents are no negatives of it.

        Args:
            records: Of the batch.
            chosen: One positive of each record in the same order; what follows does not matter.
            owners: The record of each row.

        Returns:
            Int64 of shape (rows,), and bool of shape (rows, documents).
        """
        gold = torch.tensor([self.numbers[document_key(chosen[row])] for row in owners])
        excluded = torch.zeros(len(owners), len(self.documents), dtype=torch.bool)
        for place, row in enumerate(owners):
            excluded[place, self.positives[records[row].query]] = True
        return gold.to(self.documents.device), excluded.to(self.documents.device)


def dev_vectors(embedder: ReasoningEmbedder, sets: Iterable[BeirData], folder: Path) -> list[DevSet]:
    """Sets to choose by, with the encoder's vectors, from disk where they are there."""
    found = []
    for data in sets:
        documents = vectors_on_disk(
            embedder.encode_document, list(data.documents.values()), folder, f"dev-{data.name}-documents"
        )
        questions = vectors_on_disk(
            lambda part: embedder.encode_query(part, reason=False),
            list(data.queries.values()),
            folder,
            f"dev-{data.name}-questions",
        )
        found.append(DevSet(data, np.array(documents), np.array(questions)))
    return found


@torch.no_grad()
def measure(model: Any, questions: Questions, sets: Sequence[DevSet], judge: Judge | None = None) -> dict[str, float]:
    """Retrieval by the encoder, after thinking with a budget of 0, and after thinking.

    Args:
        model: The language model with its ``query_projection``.
        questions: What else the run knows.
        sets: What to measure on.
        judge: Gives the reward of stage 2, where it is wanted.

    Returns:
        Means over the sets: ``ndcg@10_direct``, ``ndcg@10_budget_0`` and ``ndcg@10_reasoning``; means over the
        questions: ``embed_token_share``, ``nothing_to_add_share``, ``reasoning_tokens`` and ``distance``, 1 - cosine
        to the encoder's vector, and with a judge ``reward``.
    """
    talk = questions.conversation
    ways = {"direct": -1, "budget_0": 0, "reasoning": talk.default_max_reasoning_tokens}
    scores: dict[str, list[float]] = {name: [] for name in ways}
    notes: dict[str, list[float]] = {
        name: [] for name in ("embed_token_share", "nothing_to_add_share", "reasoning_tokens", "distance")
    }
    for dev in sets:
        base = torch.from_numpy(dev.questions)
        bodies = [body[:64] for body in talk.text_ids(list(dev.data.queries.values()))]
        for name, budget in ways.items():
            vectors = base
            if budget >= 0:
                thinker = model if questions.encoder is None else OnePassThinker(questions.encoder, model)
                generations = decode.think(
                    thinker,
                    talk.reasoning_turns(bodies),
                    embed_token_id=talk.embed_token_id,
                    max_new_tokens=budget,
                    stop_token_ids=decode.stop_token_ids(model),
                    batch_size=128,
                    distinct=talk.prompts.distinct_tokens,
                )
                vectors = moved_vectors(model, base, generations, questions.normalise)
            scores[name].append(_ndcg(dev, vectors))
            if name == "reasoning":
                notes["embed_token_share"] += [float(g.finished) for g in generations]
                notes["nothing_to_add_share"] += [float(nothing_to_add(g)) for g in generations]
                notes["reasoning_tokens"] += [float(len(g.ids)) for g in generations]
                notes["distance"] += (1 - F.cosine_similarity(vectors, base, dim=-1)).tolist()
                if judge is not None:
                    asked = F.normalize(vectors.float(), dim=-1)
                    documents = F.normalize(torch.from_numpy(dev.documents), dim=-1)
                    notes.setdefault("reward", []).extend(judge(dev.data, asked, documents, generations).tolist())
    means = {f"ndcg@10_{name}": float(np.mean(values)) for name, values in scores.items()}
    return {**means, **{name: float(np.mean(values)) for name, values in notes.items()}}


def moved_vectors(model: Any, base: Tensor, generations: Sequence[decode.Generation], normalise: bool) -> Tensor:
    """As :meth:`searchr3_embed.question_side.QuestionSide.moved`, with the P in training."""
    states = torch.stack([generation.state for generation in generations])
    moved = base + offsets(states, projection_weight(model)).to(base.device)
    if normalise:
        moved = F.normalize(moved, dim=-1)
    quiet = torch.tensor([nothing_to_add(generation) for generation in generations])
    return torch.where(quiet[:, None], base, moved)


def _ndcg(dev: DevSet, vectors: Tensor) -> float:
    found = score(dev.data, rank(dev.data, dense_rows(vectors.float().cpu().numpy(), dev.documents)))
    return sum(row[NDCG] for row in found.values()) / len(found)
