"""One update of a thinker beside an encoder: GRPO for what it writes, and a contrastive term for where that leads.

The reward gives P and the state at the embed token no gradient, so the contrastive term stays in stage 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from searchr3_embed.engine.head import lm_head
from training.data.records import document_key
from training.rl.policy_update import PolicyTrainer
from training.rl.rollouts import exact_rewards
from training.rl.thinker_rollouts import ThinkerRollouts
from training.shared import losses
from training.shared.embedder_trainer import without_wrapper
from training.shared.questions import DevSet, measure
from training.shared.thinker_model import ProjectionRate


class ThinkerPolicyTrainer(ProjectionRate, PolicyTrainer):
    """Trains a thinker to write reasoning that moves the question's vector to the right documents.

    Args:
        rollouts: Writes and scores.
        stay_weight: Weight of 1 - cosine to the encoder's vector.
        projection_rate: Learning rate of P, and of the head of a shared thinker.
        vector_sets: Sets to choose checkpoints by.
        **kwargs: As of :class:`PolicyTrainer`.
    """

    rollouts: ThinkerRollouts

    def __init__(
        self,
        *,
        rollouts: ThinkerRollouts,
        stay_weight: float,
        projection_rate: float,
        vector_sets: Sequence[DevSet],
        **kwargs: Any,
    ) -> None:
        self.stay_weight, self.projection_rate, self.vector_sets = stay_weight, projection_rate, list(vector_sets)
        super().__init__(rollouts=rollouts, dev_sets=(), needs_states=True, **kwargs)
        self.encoder = rollouts.questions.encoder
        rollouts.questions.to(self.accelerator.device)
        self.asked = list(rollouts.task.positives)

    def measure(self, model: PreTrainedModel) -> Mapping[str, float]:
        """What ``evaluate`` logs: retrieval, and the reward of held-out questions."""
        judge = exact_rewards(self.rollouts.reward)
        return measure(model, self.rollouts.questions, self.vector_sets, judge)

    def head_of(self, model: Any) -> Any:
        """See :class:`PolicyTrainer`; a reference model for the KL has a head of its own."""
        return lm_head(self.ref_model) if self.ref_model is not None and model is self.ref_model else self.own_head

    def _embedding_terms(self, model: Any, inputs: Any) -> Iterator[tuple[str, float, Tensor]]:
        """See :class:`PolicyTrainer`."""
        closing, self.closing = self.closing, None
        assert closing is not None
        ends = inputs["completion_mask"].sum(dim=1) - 1
        last = inputs["completion_ids"].gather(1, ends.clamp(min=0)[:, None]).squeeze(1)
        finished = (ends >= 0) & (last == self.conversation.embed_token_id)
        if not finished.any():
            return
        questions = self.rollouts.questions
        numbers = inputs["query"][finished].tolist()
        base = torch.stack([questions.vectors[self.asked[number]] for number in numbers]).to(closing.device)
        bare: Any = without_wrapper(self.accelerator.unwrap_model(model))
        moved = base + bare.query_projection(F.normalize(closing[finished].float(), dim=-1))
        if questions.normalise:
            moved = F.normalize(moved, dim=-1)
        if self.contrast[0] > 0:
            yield "contrast", self.contrast[0], self._softmax_over_all(moved, numbers)
        if self.stay_weight > 0:
            yield "stay", self.stay_weight, 1 - F.cosine_similarity(moved, base, dim=-1).mean()

    def _softmax_over_all(self, moved: Tensor, numbers: Sequence[int]) -> Tensor:
        """InfoNCE against all documents, with another positive at every step."""
        task, questions = self.rollouts.task, self.rollouts.questions
        gold, excluded = [], torch.zeros(len(numbers), len(questions.documents), dtype=torch.bool)
        for place, number in enumerate(numbers):
            known = [questions.numbers[document_key(task.documents[i])] for i in task.positives[self.asked[number]]]
            # The choice needs no random state.
            gold.append(known[self.state.global_step % len(known)])
            excluded[place, known] = True
        device = moved.device
        goal = torch.tensor(gold, device=device)
        return losses.info_nce(moved, questions.documents, goal, excluded.to(device), self.contrast[1])
