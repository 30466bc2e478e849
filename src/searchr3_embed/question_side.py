"""What moves a question's vector: a language model that thinks about the question, and a projection of where that led.

    vector = encoder(question) + g P h,   h = the state at the embed token, brought to length 1

g is from 0 to 1: how near the question is to those that the thinker was trained on, so that it leaves alone what it
knows nothing about. P begins as zero, so the untrained sum is the encoder's own vector. States of large language
models have huge outliers, which is why h has length 1; P and the sum are in float32 whatever the models' dtype is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from searchr3_embed import thinking
from searchr3_embed.conversation import Conversation
from searchr3_embed.engine import decode
from searchr3_embed.engine.forward import Thinker
from searchr3_embed.engine.one_pass import OnePassThinker
from searchr3_embed.given_reasoning import Given

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# What a thinker is made from if it shares the encoder's layers; else the name of a language model stands here.
ENCODER = "encoder"


@dataclasses.dataclass(frozen=True)
class Familiar:
    """Where a thinker knows its way: the questions that it was trained on, as centres of clusters.

    Attributes:
        centres: Unit rows in the encoder's space, float32 of shape (centres, dimension).
        foreign: Cosine to the nearest centre up to which a question is left alone.
        known: Cosine from which it is moved by all of P h; in between by a part.
    """

    centres: Tensor
    foreign: float
    known: float

    def shares(self, vectors: Tensor) -> Tensor:
        """G for the encoder's vectors of questions, shape (questions, dimension); float32 of shape (questions,)."""
        nearest = (F.normalize(vectors.float(), dim=-1) @ self.centres.to(vectors.device).T).amax(dim=1)
        return ((nearest - self.foreign) / (self.known - self.foreign)).clamp(0, 1)


@dataclasses.dataclass
class QuestionSide:
    """The thinker beside an encoder.

    Attributes:
        model: A causal language model with its head.
        tokenizer: The thinker's.
        conversation: The words around a question.
        projection: P, float32 of shape (dimension of the encoder, hidden size of the thinker).
        base: What the thinker was made from: ``"encoder"`` if it is the encoder with trained differences, which reads
            a question by the encoder's own keys and values (one pass); else the name of a language model.
        differences: What distinguishes such a thinker from the encoder, to be saved again.
        familiar: Where it moves vectors; None for everywhere.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    conversation: Conversation
    projection: Tensor
    base: str
    differences: Mapping[str, Tensor] | None = None
    familiar: Familiar | None = None

    @property
    def moves(self) -> bool:
        """Whether thinking changes any vector: not while P is zero."""
        # Asked at every call: the first row answers, but for a P of zeros.
        return bool(self.projection[0].any()) or bool(self.projection.any())

    def pipeline(self, encoder: SentenceTransformer) -> SentenceTransformer:
        """What embeds documents, and questions where nothing is thought: the encoder."""
        return encoder

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """What ``to``, ``half``, ``cuda`` and the like call; P stays in float32."""
        self.model._apply(fn)
        self.projection = self.projection.to(self.model.device)

    def engine_thinker(
        self, encoder: PreTrainedModel | None, finish: Callable[[Tensor], Tensor] | None = None
    ) -> PreTrainedModel | Thinker:
        """What the engine's loop takes.

        Args:
            encoder: The transformer of the encoder beside it.
            finish: Makes the encoder's vectors of the means of its last states, where it pools so: then nothing is
                written about questions that are foreign.
        """
        if self.base != ENCODER:
            return self.model
        assert encoder is not None
        gate = self.familiar
        if gate is None or finish is None or not self.moves:
            return OnePassThinker(encoder, self.model)
        return OnePassThinker(encoder, self.model, lambda means: gate.shares(finish(means)) == 0)

    def think(
        self,
        thinker: PreTrainedModel | Thinker,
        questions: Sequence[str],
        max_reasoning_tokens: int | None,
        *,
        given: Sequence[Given | None] | None = None,
        continue_reasoning: bool = False,
        batch_size: int = 32,
        progress: Callable[[int], object] | None = None,
        on_token: Callable[[int, int], object] | None = None,
    ) -> tuple[list[list[int]], list[decode.Generation]]:
        """Writes a reasoning for each question, or reads what is given, up to the embed token.

        Args:
            thinker: What :meth:`engine_thinker` gave.
            questions: The bare questions, without any prompt of the encoder.
            max_reasoning_tokens: Budget; None takes the checkpoint's.
            given: The reasoning of each question; None where it is to be written.
            continue_reasoning: Whether the thinker goes on after what is given.
            batch_size: Rows computed at once.
            progress: Called with the number of questions done since the last call.
            on_token: Called with a question's place and each token as it is written.

        Returns:
            The prompts as token ids, and what was written.

        Raises:
            TypeError: A question is no text, or the budget no integer.
            ValueError: The budget is out of range, or a question can't be read.
        """
        return thinking.think(
            thinker,
            decode.stop_token_ids(self.model),
            self.conversation,
            questions,
            given if given is not None else [None] * len(questions),
            max_reasoning_tokens,
            continue_reasoning=continue_reasoning,
            batch_size=batch_size,
            progress=progress,
            on_token=on_token,
        )

    def moved(self, vectors: Tensor, generations: Sequence[decode.Generation], normalise: bool) -> Tensor:
        """The questions' vectors after thinking.

        Args:
            vectors: The encoder's, as its pipeline gives them, shape (questions, dimension).
            generations: What was thought about each.
            normalise: Whether the pipeline brings vectors to length 1.

        Returns:
            Float32 of the same shape. Where there was nothing to add, or the question is foreign to the thinker, the
            encoder's vector as it is.
        """
        states = torch.stack([generation.state for generation in generations]).to(self.projection.device)
        steps = offsets(states, self.projection).to(vectors.device)
        still = torch.tensor([nothing_to_add(generation) for generation in generations], device=vectors.device)
        if self.familiar is not None:
            shares = self.familiar.shares(vectors)
            steps = shares[:, None] * steps
            still |= shares == 0
        moved = vectors.float() + steps
        if normalise:
            moved = F.normalize(moved, dim=-1)
        return torch.where(still[:, None], vectors.float(), moved)


def offsets(states: Tensor, projection: Tensor) -> Tensor:
    """P h, with h of length 1; a state of zeros moves nothing.

    Args:
        states: At the embed token, shape (questions, hidden size).
        projection: P, shape (dimension, hidden size).

    Returns:
        Float32 of shape (questions, dimension).
    """
    return F.linear(F.normalize(states.float(), dim=-1), projection.float())


def nothing_to_add(generation: decode.Generation) -> bool:
    """Whether the thinker closed its reasoning at once, by itself: then the vector is the encoder's."""
    return generation.finished and not generation.ids
