"""The reinforcement trainer: TRL's GRPO on rollouts of our engine.

What TRL computes from its own fused language-modelling head is right only for models with rotary positions whose head
is one matrix: under left padding it gives models with absolute positions wrong places, and of BERT's head it leaves
the transform out. For those, and where inference bars tokens that are written already (``distinct_tokens``), the
log-probabilities are computed here, so that the policy that is trained is the one that the engine samples from.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from trl import GRPOTrainer

from searchr3_embed.engine.batching import tokens_per_forward
from searchr3_embed.engine.head import lm_head
from training.data.beir import BeirData
from training.rl.rollouts import ENVIRONMENT_FOLDER, Rollouts, exact_rewards
from training.sft import losses
from training.shared import dev_scores
from training.shared.padding import chunks_by_length, pad
from training.shared.resume import EmbedderRun, without_wrapper

# Cosine above which a document that nobody judged says what the positive says.
NEARLY_EQUAL = 0.9
# Rollouts share a prompt in rows of at most so many tokens: what a row is blind to is computed all the same.
_LONGEST_TREE = 1024


def retrieval(score: list[float], **kwargs: Any) -> list[float | None]:
    """The reward function: the rollouts come with their scores."""
    return [*score]


class PolicyTrainer(EmbedderRun, GRPOTrainer):
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
        **kwargs: As of ``GRPOTrainer``.
    """

    def __init__(
        self,
        *,
        rollouts: Rollouts,
        dev_sets: Sequence[BeirData],
        contrast: tuple[float, float],
        memory_weight: float = 0.0,
        distil_weight: float = 0.0,
        teach: Callable[[Sequence[Sequence[int]]], Tensor] | None = None,
        hold_weight: float = 0.0,
        start: PreTrainedModel | None = None,
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
        states = memory_weight > 0 or distil_weight > 0
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

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Not estimated: most of a step's work is the rollouts."""
        return 0

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
                        self.own_head,
                        ids,
                        mask,
                        logits_to_keep,
                        self.temperature,
                        distinct=self.conversation.prompts.distinct_tokens,
                        # Processes that talk to one another in a forward pass must make equally many.
                        tokens=tokens_per_forward(model.device) if self.accelerator.num_processes == 1 else None,
                        entropy_gradient=self._entropy_bonus_enabled,
                    )
                )
        logps, entropies, closing = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        if torch.is_grad_enabled():
            self.closing = closing
        return logps, entropies if compute_entropy else None, None

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        if self.contrast[0] > 0:
            value = self._contrast_loss(model, inputs)
            self._metrics["train"]["contrast"].append(float(value.detach()))
            loss = loss + self.contrast[0] * value / self.current_gradient_accumulation_steps
        # The policy's loss has just asked for log-probabilities, and so for the states.
        closing, self.closing = self.closing, None
        if self.memory_weight > 0:
            assert closing is not None
            value = memory_loss(closing, inputs["memory"], self.contrast[1])
            self._metrics["train"]["memory"].append(float(value.detach()))
            loss = loss + self.memory_weight * value / self.current_gradient_accumulation_steps
        if self.distil_weight > 0:
            assert closing is not None
            value = self._distil_loss(closing, inputs)
            self._metrics["train"]["distil"].append(float(value.detach()))
            loss = loss + self.distil_weight * value / self.current_gradient_accumulation_steps
        if self.hold_weight > 0:
            value = self._hold_loss(model, inputs)
            self._metrics["train"]["hold"].append(float(value.detach()))
            loss = loss + self.hold_weight * value / self.current_gradient_accumulation_steps
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss of step {self.state.global_step} is {float(loss)}. A lower learning_rate, a smaller "
                "max_grad_norm or float32 usually helps."
            )
        return loss

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
            ids = pad([turns[row] for row in rows])[0].to(device)
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


def fused_head_is_right(model: PreTrainedModel) -> bool:
    """Whether TRL's fused head gives this model's log-probabilities, see the module docstring."""
    rotary = getattr(model.config, "rope_parameters", None) is not None
    return rotary and getattr(model, "lm_head", None) is model.get_output_embeddings()


def memory_loss(closing: Tensor, memory: Tensor, temperature: float) -> Tensor:
    """InfoNCE of the rollouts' embeddings against documents as the environment knows them.

    The environment ranks all documents for every rollout anyway; what stands highest without being an answer is the
    hardest negative of the whole corpus, for free (memory bank: Wu et al. 2018, https://arxiv.org/abs/1805.01978; hard
    negatives of the whole corpus: Xiong et al. 2021, https://arxiv.org/abs/2007.00808).

    Args:
        closing: State at the last token of each rollout, shape (rollouts, dimension).
        memory: Unit rows of a positive and of the negatives, shape (rollouts, 1 + negatives, dimension), without
            gradient; rows of 0 are no documents, and rollouts that never closed have none.
        temperature: Divides the cosines.

    Returns:
        The mean over the rollouts that have documents, a scalar; 0 if there are none. A negative that nearly equals
        the positive is left out: it is an answer that nobody has judged.
    """
    vectors = F.normalize(closing.float(), dim=-1)
    scores = torch.einsum("rd,rnd->rn", vectors, memory) / temperature
    nothing = memory.abs().sum(-1) == 0
    same = torch.einsum("rd,rnd->rn", memory[:, 0], memory) > NEARLY_EQUAL
    same[:, 0] = False
    scores = scores.masked_fill(nothing | same, -math.inf)
    losses = -scores[~nothing[:, 0]].log_softmax(dim=-1)[:, 0]
    return losses.sum() / max(1, len(losses))


def log_probabilities(
    model: Any,
    head: Callable[[Tensor], Tensor],
    ids: Tensor,
    mask: Tensor,
    kept: int,
    temperature: float,
    *,
    distinct: bool,
    tokens: int | None = None,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the last ``kept`` tokens, and the entropies of the distributions they were chosen from.

    A prompt that several rows share is read once. The head is asked for the tokens that were written, not for padding.

    Args:
        model: A causal language model, in its wrappers or not.
        head: Its language-modelling head.
        ids: Prompts padded on the left, completions padded on the right, shape (rows, tokens).
        mask: 1 at tokens, 0 at padding, same shape.
        kept: Length of the padded completions.
        temperature: Divides the logits.
        distinct: Whether a token that a completion holds already can't come again.
        tokens: Padded tokens of one forward pass, rows of like length together; None takes all rows at once.
        entropy_gradient: Whether the entropies get a gradient; it takes memory.

    Returns:
        Two float32 tensors of shape (rows, kept), 0 at padding, and the state at the last token of each row, shape
        (rows, dimension): the embedding, where that token is the embed token.
    """
    length = ids.shape[1] - kept
    prompts = [row[here].tolist() for row, here in zip(ids[:, :length], mask[:, :length].bool(), strict=True)]
    answers = [row[here].tolist() for row, here in zip(ids[:, length:], mask[:, length:].bool(), strict=True)]
    states, before, last = _states(model, prompts, answers, tokens, ids.device)
    completion, written = ids[:, length:], mask[:, length:].bool()
    rows, places = written.nonzero(as_tuple=True)
    logits = head(states[before]).float() / temperature
    if distinct:
        earlier = torch.arange(kept, device=ids.device) < places[:, None]
        token, place = earlier.nonzero(as_tuple=True)
        barred = torch.zeros_like(logits, dtype=torch.bool)
        barred[token, completion[rows[token], place]] = True
        # Finite, for the entropy multiplies it by 0.
        logits = logits.masked_fill(barred, torch.finfo(logits.dtype).min)
    odds = logits.log_softmax(dim=-1)
    nothing = odds.new_zeros(written.shape)
    chosen = nothing.index_put((rows, places), odds.gather(1, completion[written][:, None]).squeeze(1))
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = nothing.index_put((rows, places), -(odds.exp() * odds).sum(dim=-1))
    return chosen, entropy, states[last]


def _states(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    tokens: int | None,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Last hidden states of rows that are read as trees: what has the same prompt shares it.

    A prompt and the answers to it stand in one row, each answer at the positions behind the prompt, blind to the
    answers before it. So the rollouts of a group cost one prompt, forward and backward.

    Returns:
        States one after another, shape (any number, dimension); the numbers in them of those before each token of each
        answer, answer after answer; and the number of the state at the last token of each answer (of its prompt, where
        there is no answer).
    """
    groups: list[list[int]] = []
    trees: list[list[int]] = []
    open_tree: dict[tuple[int, ...], int] = {}
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        number = open_tree.get(tuple(prompt))
        if number is None or len(trees[number]) + len(answer) > _LONGEST_TREE:
            number = open_tree[tuple(prompt)] = len(trees)
            groups.append([])
            trees.append([*prompt])
        groups[number].append(row)
        trees[number] += answer
    states: list[Tensor] = []
    before: list[list[int]] = [[] for _ in prompts]
    last = [0] * len(prompts)
    start = 0
    for chunk in chunks_by_length(trees, tokens or len(trees) * max(map(len, trees))):
        ids = pad([trees[number] for number in chunk])[0]
        positions = torch.zeros_like(ids)
        # Which answer a token belongs to; 0 is the prompt, -1 padding, which may look at itself.
        branch = torch.full_like(ids, -1)
        for place, number in enumerate(chunk):
            length = end = len(prompts[groups[number][0]])
            branch[place, :end] = 0
            positions[place, :end] = torch.arange(end)
            offset = start + place * ids.shape[1]
            for name, row in enumerate(groups[number], start=1):
                begin, end = end, end + len(answers[row])
                branch[place, begin:end] = name
                positions[place, begin:end] = torch.arange(length, length + end - begin)
                places = [length - 1, *range(begin, end)]
                before[row] = [offset + i for i in places[:-1]]
                last[row] = offset + places[-1]
        start += ids.numel()
        seen = (branch[:, None] == branch[:, :, None]) | (branch[:, None] == 0)
        hidden = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1) | ~seen
        mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)[:, None]
        output = model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            use_cache=False,
            output_hidden_states=True,
            logits_to_keep=1,
        )
        states.append(output.hidden_states[-1].flatten(0, 1))
    flat = [place for places in before for place in places]
    return torch.cat(states), torch.tensor(flat, device=device), torch.tensor(last, device=device)


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
