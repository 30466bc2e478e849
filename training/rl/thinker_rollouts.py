"""Rollouts of a thinker beside an encoder: the corpus never changes, so the reward is the true one at every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from searchr3_embed.engine import decode
from searchr3_embed.engine.forward import Thinker
from searchr3_embed.engine.one_pass import OnePassThinker
from training.data.records import document_key
from training.rl.corpus.environment import Encode, EnvironmentSettings
from training.rl.rollouts import Rollouts
from training.shared.questions import Questions, moved_vectors

# Nothing is ever encoded again.
EXACT = EnvironmentSettings(neighbours=0, budget=0, refresh="none", correct_drift=False)


@dataclasses.dataclass
class ThinkerRollouts(Rollouts):
    """As :class:`Rollouts`; an embedding is the encoder's vector of the question, moved.

    Attributes:
        questions: The encoder's vectors, and how they are moved.
    """

    questions: Questions = dataclasses.field(kw_only=True)

    def embeddings(self, model: Any, queries: Sequence[str], written: Sequence[decode.Generation]) -> Tensor:
        """See :class:`Rollouts`. The reward compares cosines, also for encoders that do not normalise."""
        base = torch.stack([self.questions.vectors[query] for query in queries])
        return F.normalize(moved_vectors(model, base, written, self.questions.normalise), dim=-1)

    def thinker(self, model: PreTrainedModel) -> PreTrainedModel | Thinker:
        """See :class:`Rollouts`."""
        encoder = self.questions.encoder
        return model if encoder is None else OnePassThinker(encoder, model)

    def encoder(self, model: PreTrainedModel) -> Encode:
        """The encoder's vectors, which are known already."""

        def encode(texts: Sequence[str]) -> np.ndarray:
            rows = [self.questions.numbers[document_key(text)] for text in texts]
            return F.normalize(self.questions.documents[rows].cpu(), dim=-1).numpy()

        return encode

    def _judge(self, *args: Any) -> tuple[np.ndarray, np.ndarray | None]:
        found = super()._judge(*args)
        # The environment counts steps since a document was encoded, but these vectors never grow old.
        del self.judged["staleness"]
        return found
