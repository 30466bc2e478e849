"""A thinker that is trained on: what it knows at the embed token, at once behind the question, moves the vector.

Nothing is written: the words of a corpus's questions were never taught, and a budget of 0 finds as much. So the
adapted thinker's default budget is 0.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from searchr3_embed.adapt import branches
from searchr3_embed.adapt.familiar import fit
from searchr3_embed.adapt.learner import Candidate, Schedule, load_state, trained_state
from searchr3_embed.adapt.trainable_thinker import choose_trained, is_fresh, trained_side, with_projection
from searchr3_embed.embedder import ReasoningEmbedder
from searchr3_embed.engine.batching import tokens_per_forward
from searchr3_embed.kinds import encoder_with_thinker
from searchr3_embed.query_route import QueryRoute
from searchr3_embed.question_side import ENCODER

# As the packaged thinker was made.
_RANK, _CENTRES, _FOREIGN, _KNOWN = 64, 256, 0.5, 0.7
# P starts from nothing, or from another corpus: it learns as much faster.
_PROJECTION_FASTER = 4.0


class Thinker:
    """The thinker of an embedder, by low-rank differences, and P in full.

    Args:
        embedder: An encoder with a thinker.
        questions: To train with; the adapted thinker is familiar with these.
        lora: Rank of the differences.
        seed: Of the clusters of familiar questions.

    Raises:
        ValueError: The embedder has no thinker.
    """

    def __init__(
        self, embedder: ReasoningEmbedder, questions: Sequence[str], lora: int = _RANK, seed: int = 7
    ) -> None:
        from peft import LoraConfig, TaskType, get_peft_model

        side = embedder.question_side
        if side is None or isinstance(side, QueryRoute):
            raise ValueError("This model has no thinker to train: name an encoder, or train a question-encoder.")
        self.embedder, self.texts = embedder, list(questions)
        self.side = dataclasses.replace(side, model=copy.deepcopy(side.model).float())
        self.encoder = encoder_with_thinker.transformer(embedder) if side.base == ENCODER else None
        self.normalise = encoder_with_thinker.normalises(embedder)
        self.familiar = fit(embedder, {"corpus": self.texts}, _CENTRES, _FOREIGN, _KNOWN, seed)
        self.base = self._base(self.texts)
        config = LoraConfig(r=lora or _RANK, lora_alpha=lora or _RANK, lora_dropout=0.0, task_type=TaskType.CAUSAL_LM)
        choose_trained(config, side)
        if side.base != ENCODER:
            config.target_modules = "all-linear"
        torch.manual_seed(seed)
        self.model: Any = get_peft_model(with_projection(self.side), cast(Any, config))
        self.model.eval()
        self.trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        self.schedule = Schedule(
            (Candidate(5e-4, 10.0), Candidate(5e-4, 3.0), Candidate(1e-3, 10.0), Candidate(2e-4, 10.0)),
            every=10,
            most_steps=400,
        )

    def _base(self, texts: Sequence[str]) -> Tensor:
        found = self.embedder.encode_query(list(texts), reason=False, convert_to_tensor=True)
        # Made in inference mode, from which nothing can learn.
        return cast(Tensor, found).float().clone()

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """P, and a head that starts from nothing, learn faster."""
        fresh = [value for name, value in self.trained.items() if is_fresh(name)]
        others = [value for name, value in self.trained.items() if not is_fresh(name)]
        return [{"params": others, "lr": rate}, {"params": fresh, "lr": rate * _PROJECTION_FASTER}]

    def _after(self, texts: Sequence[str], base: Tensor) -> Tensor:
        talk = self.side.conversation
        prompts = talk.reasoning_ids(texts, 0)
        device = self.side.projection.device
        end = [[talk.embed_token_id]] * len(prompts)
        states, _, last = branches.states(self.model, prompts, end, tokens_per_forward(device), device, self.encoder)
        bare = self.model.get_base_model()
        moved = base + bare.query_projection(F.normalize(states[last].float(), dim=-1))
        return F.normalize(moved, dim=-1) if self.normalise else moved

    def moved(self, rows: Sequence[int]) -> Tensor:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        return self._after([self.texts[row] for row in rows], self.base[torch.tensor(list(rows))])

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> Tensor:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        base = self._base(texts)
        # The step is found again, because a part of it counts where a question is less familiar.
        step = self._step(texts)
        shares = self.familiar.shares(base)[:, None]
        moved = base + shares * step
        if self.normalise:
            moved = F.normalize(moved, dim=-1)
        return torch.where(shares > 0, moved, base)

    def _step(self, texts: Sequence[str]) -> Tensor:
        normalise, self.normalise = self.normalise, False
        try:
            return self._after(texts, torch.zeros(1, self.base.shape[1], device=self.base.device))
        finally:
            self.normalise = normalise

    def state(self) -> dict[str, Tensor]:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        return trained_state(self.trained)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        load_state(self.trained, state)

    def finished(self) -> ReasoningEmbedder:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        side = trained_side(self.model, self.side, torch.float16 if self.side.base == ENCODER else torch.float32)
        talk = copy.copy(side.conversation)
        talk.prompts = dataclasses.replace(talk.prompts, max_reasoning_tokens=0)
        talk.default_max_reasoning_tokens = 0
        made = copy.copy(self.embedder)
        made.question_side = dataclasses.replace(side, conversation=talk, familiar=self.familiar)
        return made.eval()
