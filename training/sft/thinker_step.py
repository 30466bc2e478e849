"""One training step of a thinker beside an encoder that nobody touches.

Documents are constants, so the softmax runs over all of them. A question is embedded after an empty reasoning (a
budget of 0), after its reasoning target, and after what the thinker writes by itself; so words have to beat no words.
On request also after words that are given to it, as an agent's are.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel
from trl import SFTTrainer
from trl.models.utils import unwrap_model_for_generation

from searchr3_embed.adapt import branches
from searchr3_embed.engine import decode
from searchr3_embed.engine.batching import tokens_per_forward
from searchr3_embed.engine.head import lm_head
from searchr3_embed.engine.one_pass import OnePassThinker
from training.sft.batches import Batch
from training.shared import losses
from training.shared.embedder_trainer import EmbedderTrainer, without_wrapper
from training.shared.questions import DevSet, Questions, measure
from training.shared.thinker_model import ProjectionRate

# Names of what is trained from the first step on: P, and the heads of BERT and of other language models.
_LEARN_AT_ONCE = ("query_projection", "predictions", "lm_head")


@dataclasses.dataclass(frozen=True)
class ThinkerLoss:
    """Weights of the terms (0 leaves a term out) and what else decides the loss.

    Attributes:
        language: Cross-entropy of the reasoning targets, the embed token included.
        contrast: Softmax over all documents.
        triplet: The hardest document of all.
        stay: 1 - cosine to the encoder's vector: keeps other domains safe.
        temperature: Of the softmax.
        margin: Of the triplet, in cosine.
        own_reasoning: Share of the questions that are also embedded after what the thinker wrote.
        own_temperature: Temperature at which it writes; 0 takes the likeliest token, as at inference.
        given_reasoning: Share of the questions that are also embedded after words of another text that answers them.
        given_length: Most tokens of such words.
    """

    language: float
    contrast: float
    triplet: float
    stay: float
    temperature: float
    margin: float
    own_reasoning: float
    own_temperature: float
    given_reasoning: float = 0.0
    given_length: int = 64


class ThinkerTrainer(ProjectionRate, EmbedderTrainer, SFTTrainer):
    """Trains what moves a question's vector; the encoder is never touched.

    Args:
        questions: Corpus, vectors, conversation and encoder.
        settings: The loss.
        projection_rate: Learning rate of what starts from nothing: P, and the head of a shared thinker.
        warm_up: Steps in which P alone is trained: while P is zero, the thinker has no gradient.
        vector_sets: Sets to choose checkpoints by, see :func:`training.shared.questions.measure`.
        **kwargs: As of ``SFTTrainer``.
    """

    # The loss is computed for the whole batch, so transformers must not scale it for gradient accumulation.
    loss_is_scaled_for_ga: Any = False

    def __init__(
        self,
        *,
        questions: Questions,
        settings: ThinkerLoss,
        projection_rate: float,
        warm_up: int,
        vector_sets: Sequence[DevSet] = (),
        **kwargs: Any,
    ) -> None:
        self.projection_rate, self.warm_up = projection_rate, warm_up
        super().__init__(**kwargs)
        self.questions, self.settings, self.vector_sets = questions, settings, list(vector_sets)
        self.conversation = questions.conversation
        self.device = self.accelerator.device
        questions.to(self.device)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        # The rows are in the order of training already, for all epochs.
        return SequentialSampler(cast(Any, self.train_dataset))

    def measure(self, model: PreTrainedModel) -> Mapping[str, float]:
        """What ``evaluate`` logs."""
        return measure(model, self.questions, self.vector_sets)

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Computes the loss of one batch and its gradient; returns the loss."""
        batch: Batch = inputs["batch"]
        model.train()
        prompts = self.conversation.reasoning_turns(batch.query_bodies)
        end = self.conversation.embed_token_id
        written, owners = [[end] for _ in prompts], list(range(len(prompts)))
        targets = [(row, ids) for row, ids in enumerate(batch.reasonings) if ids is not None]
        written += [[*ids, end] for _, ids in targets]
        owners += [row for row, _ in targets]
        own = self._write(model, batch, prompts)
        written += [[*ids, end] for ids in own.values()]
        owners += list(own)
        given = self._given_words(batch)
        written += [[*ids, end] for ids in given.values()]
        owners += list(given)
        states, before, last = branches.states(
            model,
            [prompts[row] for row in owners],
            written,
            # Processes that talk to one another in a forward pass must make equally many.
            tokens_per_forward(self.device) if self.accelerator.num_processes == 1 else None,
            self.device,
            self.questions.encoder,
        )
        bare = without_wrapper(self.accelerator.unwrap_model(model))
        moved, base = self.questions.moved(batch.records, owners, states[last], bare)
        parts = self._vector_terms(batch, owners, moved, base)
        first = sum(len(ids) for ids in written[: len(prompts)])
        taught = sum(len(ids) + 1 for _, ids in targets)
        if self.settings.language > 0 and taught:
            chosen = before[first : first + taught]
            goals = torch.tensor([token for _, ids in targets for token in (*ids, end)], device=self.device)
            parts["language"] = losses.language(lm_head(bare)(states[chosen]).float(), goals) / taught
        weights = dataclasses.asdict(self.settings)
        loss = 0 * moved.sum()
        for name, value in parts.items():
            loss = loss + weights[name] * value
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss of step {self.state.global_step} is {float(loss)}. A lower learning_rate, a smaller "
                "max_grad_norm or float32 usually helps."
            )
        self.accelerator.backward(loss)
        self._hold_thinker(model)
        for name, value in parts.items():
            self._metrics["train"][name].append(float(value.detach()))
        return loss.detach()

    def _hold_thinker(self, model: Any) -> None:
        """Leaves the thinker as it is during the first steps, but for its head, which learns to write at once."""
        if self.state.global_step >= self.warm_up:
            return
        for name, value in model.named_parameters():
            if value.grad is not None and not any(part in name for part in _LEARN_AT_ONCE):
                value.grad = None

    def _vector_terms(self, batch: Batch, owners: Sequence[int], moved: Tensor, base: Tensor) -> dict[str, Tensor]:
        settings = self.settings
        parts: dict[str, Tensor] = {}
        if settings.contrast > 0 or settings.triplet > 0:
            gold, excluded = self.questions.answers(batch.records, batch.documents, owners)
            documents = self.questions.documents
            if settings.contrast > 0:
                parts["contrast"] = losses.info_nce(moved, documents, gold, excluded, settings.temperature)
            if settings.triplet > 0:
                parts["triplet"] = losses.triplet_margin(moved, documents, gold, excluded, settings.margin)
        # The angle is what buys gains in a domain and costs others; so it is logged even where nothing weighs it.
        parts["stay"] = 1 - F.cosine_similarity(moved, base, dim=-1).mean()
        return parts

    def _given_words(self, batch: Batch) -> dict[int, list[int]]:
        """For a share of the questions, the words of a text that answers them and is not the one to be found."""
        wanted = round(self.settings.given_reasoning * len(batch.records))
        if not wanted:
            return {}
        rng = random.Random(f"{self.args.seed}/{batch.position}/given")
        answers = zip(batch.records, batch.documents, strict=False)  # of the documents, the first ones answer
        others = [[text for text in record.positives if text != document] for record, document in answers]
        rows = [row for row, texts in enumerate(others) if texts]
        rows = sorted(rng.sample(rows, min(wanted, len(rows))))
        words = self.conversation.text_ids([rng.choice(others[row]) for row in rows])
        return {row: ids[: self.settings.given_length] for row, ids in zip(rows, words, strict=True)}

    @torch.no_grad()
    def _write(self, model: Any, batch: Batch, prompts: Sequence[Sequence[int]]) -> dict[int, list[int]]:
        """What the thinker itself writes now, for a share of the questions."""
        wanted = round(self.settings.own_reasoning * len(prompts))
        # Evenly spaced, because records that stand together come from one source.
        rows = [i * len(prompts) // wanted for i in range(wanted)]
        if not rows:
            return {}
        generator = torch.Generator(self.device).manual_seed(self.args.seed + batch.position)
        with unwrap_model_for_generation(model, self.accelerator) as wrapped, self.accelerator.autocast():
            wrapped.eval()
            bare = without_wrapper(wrapped)
            encoder = self.questions.encoder
            generations = decode.think(
                bare if encoder is None else OnePassThinker(encoder, bare),
                [prompts[row] for row in rows],
                embed_token_id=self.conversation.embed_token_id,
                max_new_tokens=self.conversation.default_max_reasoning_tokens,
                stop_token_ids=decode.stop_token_ids(bare),
                batch_size=min(len(rows), 256),
                distinct=self.conversation.prompts.distinct_tokens,
                temperature=self.settings.own_temperature,
                generator=generator,
            )
            wrapped.train()
        self._metrics["train"]["own_closed"].append(float(np.mean([g.finished for g in generations])))
        self._metrics["train"]["own_tokens"].append(float(np.mean([len(g.ids) for g in generations])))
        return {row: generation.ids for row, generation in zip(rows, generations, strict=True)}
