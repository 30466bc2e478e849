"""One update of the policy: TRL's GRPO on rollouts of our engine, and the losses of embeddings beside it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from trl import GRPOTrainer

from searchr3_embed.adapt.padding import chunks_by_length, pad
from searchr3_embed.engine.batching import tokens_per_forward
from searchr3_embed.engine.head import lm_head
from training.data.beir import BeirData
from training.rl.log_probabilities import fused_head_is_right, log_probabilities
from training.rl.rollouts import ENVIRONMENT_FOLDER, Rollouts, exact_rewards
from training.shared import dev_scores, losses
from training.shared.embedder_trainer import EmbedderTrainer, without_wrapper
from training.shared.teacher import Teach


def retrieval(score: list[float], **kwargs: Any) -> list[float | None]:
    """The reward function that TRL asks for; the rollouts have brought their scores with them."""
    return [*score]


class PolicyTrainer(EmbedderTrainer, GRPOTrainer):
    """Trains a model to write reasoning whose embedding ranks the right documents.

    Args:
        rollouts: Writes and scores.
        dev_sets: Sets to choose checkpoints by.
        contrast: Weight of the contrastive loss beside the policy's, and its temperature.
        memory_weight: Weight of the contrastive loss of the rollouts against the environment's vectors; it needs
            ``rollouts.negatives`` and has the same temperature.
        distil_weight: Weight of the distance of the rollouts' embeddings to the teacher's of their query.
        teach: Gives the teacher's unit vectors (texts, dimension) of token ids, for that.
        hold_weight: Weight of the distance of direct embeddings to those of the stage-1 model.
        start: The stage-1 model for that, where neither adapters nor a reference model for the KL give it.
        needs_states: Whether a subclass has terms that need the states of the rollouts.
        **kwargs: As of ``GRPOTrainer``.
    """

    # The network that reads the prompts, for a thinker that works on an encoder's own pass.
    encoder: PreTrainedModel | None = None

    def __init__(
        self,
        *,
        rollouts: Rollouts,
        dev_sets: Sequence[BeirData],
        contrast: tuple[float, float],
        memory_weight: float = 0.0,
        distil_weight: float = 0.0,
        teach: Teach | None = None,
        hold_weight: float = 0.0,
        start: PreTrainedModel | None = None,
        needs_states: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(reward_funcs=retrieval, rollout_func=rollouts, **kwargs)
        self.rollouts, self.conversation, self.contrast = rollouts, rollouts.conversation, contrast
        self.memory_weight, self.hold_weight, self.start = memory_weight, hold_weight, start
        self.distil_weight, self.teach = distil_weight, teach
        if start is not None:
            start.to(self.accelerator.device).eval().requires_grad_(False)
        self.closing: Tensor | None = None
        self.dev_sets = list(dev_sets)
        self.names = {query: number for number, query in enumerate(rollouts.task.positives)}
        bare = without_wrapper(self.accelerator.unwrap_model(self.model))
        # The losses of the rollouts' embeddings need the states, which the fused head does not give.
        states = memory_weight > 0 or distil_weight > 0 or needs_states
        own = self.conversation.prompts.distinct_tokens or not fused_head_is_right(bare) or states
        self.own_head = lm_head(bare) if own else None
        self.add_callback(_Clock(self))

    def measure(self, model: PreTrainedModel) -> Mapping[str, float]:
        """What ``evaluate`` logs: retrieval, and the reward of held-out queries."""
        return dev_scores.measure(model, self.conversation, self.dev_sets, exact_rewards(self.rollouts.reward))

    def save_beside(self, folder: Path) -> None:
        """Saves the environment into a checkpoint."""
        if self.args.should_save and self.rollouts.environment is not None:
            self.rollouts.environment.save(folder / ENVIRONMENT_FOLDER)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        for name, value in self.rollouts.judged.items():
            self._metrics["train"][name].append(value)
        if self.rollouts.memory is not None:
            output["memory"] = self.rollouts.memory.to(self.accelerator.device)
        output["query"] = torch.tensor([self.names[row["prompt"]] for row in inputs], device=self.accelerator.device)
        return output

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self.own_head is None:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        parts = []
        for ids, mask in zip(
            input_ids.split(batch_size or len(input_ids)),
            attention_mask.split(batch_size or len(input_ids)),
            strict=True,
        ):
            with self.accelerator.autocast():
                parts.append(
                    log_probabilities(
                        model,
                        self.head_of(model),
                        ids,
                        mask,
                        logits_to_keep,
                        self.temperature,
                        distinct=self.conversation.prompts.distinct_tokens,
                        # Processes that talk to one another in a forward pass must make equally many.
                        tokens=tokens_per_forward(model.device) if self.accelerator.num_processes == 1 else None,
                        entropy_gradient=self._entropy_bonus_enabled,
                        encoder=self.encoder,
                    )
                )
        logps, entropies, closing = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        if torch.is_grad_enabled():
            self.closing = closing
        return logps, entropies if compute_entropy else None, None

    def head_of(self, model: Any) -> Any:
        """The language-modelling head for the states of a model."""
        return self.own_head

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        for name, weight, value in self._embedding_terms(model, inputs):
            self._metrics["train"][name].append(float(value.detach()))
            loss = loss + weight * value / self.current_gradient_accumulation_steps
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss of step {self.state.global_step} is {float(loss)}. A lower learning_rate, a smaller "
                "max_grad_norm or float32 usually helps."
            )
        return loss

    def _embedding_terms(self, model: Any, inputs: Any) -> Iterator[tuple[str, float, Tensor]]:
        """Name, weight and value of each term beside the policy's loss."""
        # The policy's loss has just asked for log-probabilities, and so for the states.
        closing, self.closing = self.closing, None
        if self.contrast[0] > 0:
            yield "contrast", self.contrast[0], self._contrast_loss(model, inputs)
        if self.memory_weight > 0:
            assert closing is not None
            yield "memory", self.memory_weight, losses.memory_loss(closing, inputs["memory"], self.contrast[1])
        if self.distil_weight > 0:
            assert closing is not None
            yield "distil", self.distil_weight, self._distil_loss(closing, inputs)
        if self.hold_weight > 0:
            yield "hold", self.hold_weight, self._hold_loss(model, inputs)

    def _contrast_loss(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """InfoNCE of the queries, direct and after their finished rollouts, against one document for each query."""
        turns, numbers, chosen = self._direct_turns(inputs)
        place = {number: i for i, number in enumerate(numbers)}
        known = list(self.rollouts.task.positives.values())
        answers = [known[number] for number in numbers]
        gold = list(range(len(numbers)))
        parts = (inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"], inputs["completion_mask"])
        for number, prompt, before, completion, after in zip(inputs["query"].tolist(), *parts, strict=True):
            ids = completion[after.bool()].tolist()
            if ids and ids[-1] == self.conversation.embed_token_id:
                turns.append(prompt[before.bool()].tolist() + ids)
                gold.append(place[number])
        vectors = self._embedded(model, turns)
        asked = torch.cat([vectors[: len(numbers)], vectors[2 * len(numbers) :]])
        right = torch.tensor([[i in rows for i in chosen] for rows in answers], device=vectors.device)
        goal = torch.tensor(gold, device=vectors.device)
        return losses.info_nce(asked, vectors[len(numbers) : 2 * len(numbers)], goal, right[goal], self.contrast[1])

    def _distil_loss(self, closing: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Distance of the embeddings that finished rollouts lead to to the teacher's of their bare query.

        A causal model that reads a question twice sees all of it in the second reading, as a bidirectional teacher
        does, and can come closer to it than the direct embedding (Echo embeddings: https://arxiv.org/abs/2402.15449).
        """
        assert self.teach is not None
        numbers, groups = inputs["query"].unique(return_inverse=True)
        known = list(self.rollouts.task.positives)
        bodies = self.conversation.text_ids([known[number] for number in numbers.tolist()])
        with torch.no_grad():
            targets = self.teach([body[: self.rollouts.query_length] for body in bodies]).to(closing.device)
        ends = inputs["completion_mask"].sum(dim=1) - 1
        last = inputs["completion_ids"].gather(1, ends.clamp(min=0)[:, None]).squeeze(1)
        finished = (ends >= 0) & (last == self.conversation.embed_token_id)
        if not finished.any():
            return closing.sum() * 0
        return losses.distance(F.normalize(closing[finished].float(), dim=-1), targets[groups[finished]])

    def _hold_loss(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Distance of the queries and of one document for each to where stage 1 embeds them, all direct."""
        turns = self._direct_turns(inputs)[0]
        with torch.no_grad(), self._stage_1(model) as frozen:
            targets = self._embedded(frozen, turns)
        return losses.distance(self._embedded(model, turns), targets)

    def _direct_turns(self, inputs: Mapping[str, Tensor]) -> tuple[list[list[int]], list[int], list[int]]:
        """Direct turns of the queries of a batch, then of a positive of each; the queries' and documents' numbers."""
        task, talk = self.rollouts.task, self.conversation
        numbers = inputs["query"].unique().tolist()
        known = list(task.positives)
        queries = [known[number] for number in numbers]
        # Another positive at every step; the choice needs no random state.
        chosen = [rows[self.state.global_step % len(rows)] for rows in map(task.positives.__getitem__, queries)]
        bodies = [body[: self.rollouts.query_length] for body in talk.text_ids(queries)]
        texts = [body[: self.rollouts.document_length] for body in talk.text_ids([task.documents[i] for i in chosen])]
        return talk.direct_turns(bodies) + talk.direct_turns(texts), numbers, chosen

    def _embedded(self, model: Any, turns: Sequence[Sequence[int]]) -> Tensor:
        """Unit float32 rows, the state at the last token of each turn."""
        device = self.accelerator.device
        # Processes that talk to one another in a forward pass must make equally many.
        alone = self.accelerator.num_processes == 1
        tokens = tokens_per_forward(model.device) if alone else len(turns) * max(map(len, turns))
        vectors: list[Tensor] = [torch.empty(0)] * len(turns)
        for rows in chunks_by_length(turns, tokens):
            ids = pad([turns[row] for row in rows]).to(device)
            with self.accelerator.autocast():
                output = model(input_ids=ids, use_cache=False, output_hidden_states=True, logits_to_keep=1)
            last = torch.tensor([len(turns[row]) - 1 for row in rows], device=device)
            states = output.hidden_states[-1][torch.arange(len(rows), device=device), last]
            for row, vector in zip(rows, F.normalize(states.float(), dim=-1), strict=True):
                vectors[row] = vector
        return torch.stack(vectors)

    @contextlib.contextmanager
    def _stage_1(self, model: Any) -> Iterator[Any]:
        """The model as it was before this stage."""
        frozen = self.start if self.start is not None else self.ref_model
        if frozen is not None:
            yield frozen
            return
        with self.accelerator.unwrap_model(model).disable_adapter():
            yield model


class _Clock(TrainerCallback):
    """Logs what each step spent on writing, on the environment, and on the update."""

    def __init__(self, trainer: PolicyTrainer) -> None:
        self.trainer, self.began = trainer, 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()
        self.trainer.rollouts.seconds.clear()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        whole = time.perf_counter() - self.began
        spent = self.trainer.rollouts.seconds
        seconds = {name: spent[name] for name in ("generating", "refreshing")}
        for name, value in {**seconds, "updating": whole - sum(spent.values())}.items():
            self.trainer._metrics["train"][f"seconds_{name}"].append(value)
