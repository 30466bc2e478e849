"""One step of stage 1: TRL's trainer, with a loss for embeddings and written text in the same forward passes.

One step is one contrastive batch, however large: its turns go through the model in chunks of ``tokens_per_forward``
tokens, twice. The first pass keeps only the embeddings, on which the contrastive loss and its gradient are computed;
the second pass computes each chunk again with gradient, and its backward pass starts from the gradient of the
embeddings and from the chunk's own language loss (GradCache, Gao et al. 2021, https://arxiv.org/abs/2101.06983). So
memory grows with a chunk, negatives with the batch, and the gradient is that of the whole batch in one pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel
from trl import SFTTrainer
from trl.models.utils import unwrap_model_for_generation

from searchr3_embed.adapt.padding import chunks_by_length, pad
from searchr3_embed.conversation import Conversation
from searchr3_embed.engine import decode
from searchr3_embed.files import write_text
from training.data.beir import BeirData
from training.sft.batches import Answers, Batch, Turn, View, lay_out
from training.shared import losses
from training.shared.embedder_trainer import EmbedderTrainer, without_wrapper
from training.shared.teacher import Teach


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Weights of the terms (0 leaves a term out) and what else decides the loss.

    Attributes:
        language: L_SFT, cross-entropy of the answers.
        divergence: L_KL, to the frozen base on the same tokens.
        contrast: L_InfoNCE.
        triplet: L_triplet.
        distil: Distance of the direct embeddings to the teacher's.
        relation: Divergence of the direct embeddings' neighbourhoods in the batch from the teacher's.
        distil_reasoning: Distance of the reasoning embeddings to the teacher's embedding of the bare query.
        temperature: tau of InfoNCE.
        margin: theta of the triplet loss, in cosine.
        own_reasoning: Share of the records that also get a turn with reasoning that the model wrote itself.
        target_contrast: Whether turns with the reasoning target take part in the terms of embeddings.
        teach_direct: Whether the fixed answer of the direct turn is taught too, not only reasoning.
        own_temperature: Temperature at which the model writes; 0 takes the likeliest token, as at inference.
    """

    language: float = 1.0
    divergence: float = 0.1
    contrast: float = 1.0
    triplet: float = 1.0
    distil: float = 0.0
    relation: float = 0.0
    distil_reasoning: float = 0.0
    temperature: float = 0.05
    margin: float = 0.15
    own_reasoning: float = 1.0
    target_contrast: bool = True
    teach_direct: bool = True
    own_temperature: float = 0.0


class EmbeddingTrainer(EmbedderTrainer, SFTTrainer):
    """Trains a causal language model to write a short reasoning and to embed at the token that ends it.

    Args:
        conversation: The words around the texts.
        settings: The loss.
        tokens_per_forward: Padded tokens of one forward pass.
        grad_cache: Whether memory is bounded by a chunk; False keeps the graph of the whole batch and saves the first
            pass, for batches that fit.
        reference: The frozen base for L_KL where the model is trained in full; None takes the model without adapters.
        teach: Gives the teacher's unit vectors (texts, dimension) of token ids, where a distance to it is asked for.
        dev_sets: Sets to choose checkpoints by.
        **kwargs: As of ``SFTTrainer``.
    """

    # The loss is computed for the whole batch, so transformers must not scale it for gradient accumulation.
    loss_is_scaled_for_ga: Any = False

    def __init__(
        self,
        *,
        conversation: Conversation,
        settings: LossSettings,
        tokens_per_forward: int,
        grad_cache: bool,
        reference: PreTrainedModel | None = None,
        teach: Teach | None = None,
        dev_sets: Sequence[BeirData] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.args.gradient_accumulation_steps != 1:
            raise ValueError(
                "gradient_accumulation_steps must be 1, got "
                f"{self.args.gradient_accumulation_steps}: raise per_device_train_batch_size instead. A step holds "
                "one whole contrastive batch, and tokens_per_forward bounds its memory."
            )
        self.conversation = conversation
        self.settings = settings
        self.tokens_per_forward = tokens_per_forward
        # Processes exchange gradients at each backward pass, so several forward passes can't share one.
        self.grad_cache = grad_cache or self.accelerator.num_processes > 1
        self.reference = reference
        self.teach = teach
        self.dev_sets = list(dev_sets)
        self.device = self.accelerator.device
        if reference is not None:
            reference.to(self.device).eval().requires_grad_(False)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        # The rows are in the order of training already, for all epochs.
        return SequentialSampler(cast(Any, self.train_dataset))

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Computes the loss of one batch and its gradient; returns the loss."""
        batch: Batch = inputs["batch"]
        model.train()
        own = self._write(model, batch)
        turns, views, documents = lay_out(
            batch, self.conversation, own, targets=self._uses_targets(), teach_direct=self.settings.teach_direct
        )
        chunks = list(chunks_by_length([turn.ids for turn in turns], self.tokens_per_forward))
        # The mean over the taught tokens of all processes, whose gradients are averaged.
        processes = self.accelerator.num_processes
        taught = sum(gather_object([sum(len(turn.answer) for turn in turns if turn.taught)])) / processes
        parts: dict[str, Tensor] = {}

        def embedding_loss(vectors: Tensor) -> Tensor:
            # So that there is a gradient even where every term is switched off.
            loss = 0 * vectors.sum()
            for name, weight, value in self._embedding_terms(batch, views, vectors, documents):
                parts[name] = value.detach()
                loss = loss + weight * value
            return loss

        if not self.grad_cache:
            outputs = [self._forward(model, [turns[row] for row in rows]) for rows in chunks]
            loss = embedding_loss(_in_order(chunks, [output[0] for output in outputs]))
            loss = loss + self._language_loss([output[1] for output in outputs], taught, parts)
            self._check(loss, parts, batch)
            self.accelerator.backward(loss)
            return self._note(loss.detach(), parts)

        # First pass: embeddings only. The random state of each chunk is kept, so that dropout is the same later.
        states = []
        with torch.no_grad():
            pieces = []
            for rows in chunks:
                states.append(_random_state(self.device))
                pieces.append(self._forward(model, [turns[row] for row in rows], language=False)[0])
        vectors = _in_order(chunks, pieces).requires_grad_()
        loss = embedding_loss(vectors)
        self._check(loss, parts, batch)
        # Each process has its own part of the gradient of a loss that all share; their mean is to be the sum.
        gradient = torch.autograd.grad(loss, vectors)[0] * processes
        loss = loss.detach()
        for number, (rows, state) in enumerate(zip(chunks, states, strict=True)):
            last = number == len(chunks) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model), _replayed(state, self.device):
                again, sums = self._forward(model, [turns[row] for row in rows])
                language = self._language_loss([sums], taught, parts)
                self._check(language, parts, batch)
                self.accelerator.backward((again * gradient[rows]).sum() + language)
            loss = loss + language.detach()
        return self._note(loss, parts)

    def _uses_targets(self) -> bool:
        settings = self.settings
        return settings.target_contrast or settings.language > 0 or settings.divergence > 0

    @torch.no_grad()
    def _write(self, model: Any, batch: Batch) -> dict[int, list[int]]:
        """What the model itself writes now for the records that have a reasoning target."""
        rows = [row for row, ids in enumerate(batch.reasonings) if ids is not None]
        # Evenly spaced, because records that stand together come from one source.
        wanted = round(self.settings.own_reasoning * len(rows))
        rows = [rows[i * len(rows) // wanted] for i in range(wanted)]
        if not rows:
            return {}
        prompts = self.conversation.reasoning_turns([batch.query_bodies[row] for row in rows])
        generator = torch.Generator(self.device).manual_seed(self.args.seed + batch.position)
        with unwrap_model_for_generation(model, self.accelerator) as bare, self.accelerator.autocast():
            bare.eval()
            generations = decode.think(
                without_wrapper(bare),
                prompts,
                embed_token_id=self.conversation.embed_token_id,
                max_new_tokens=self.conversation.default_max_reasoning_tokens,
                stop_token_ids=decode.stop_token_ids(bare),
                batch_size=min(len(prompts), 128),
                distinct=self.conversation.prompts.distinct_tokens,
                temperature=self.settings.own_temperature,
                generator=generator,
            )
            bare.train()
        self._metrics["train"]["own_closed"].append(sum(g.finished for g in generations) / len(rows))
        self._metrics["train"]["own_tokens"].append(sum(len(g.ids) for g in generations) / len(rows))
        return {row: generation.ids for row, generation in zip(rows, generations, strict=True)}

    def _forward(self, model: Any, turns: Sequence[Turn], language: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """Unit float32 embeddings (turns, dimension), and the sums of the language terms over the taught tokens."""
        settings = self.settings
        taught = [turn.taught and language for turn in turns]
        ids = pad([turn.ids for turn in turns]).to(self.device)
        last = torch.tensor([len(turn.ids) - 1 for turn in turns], device=self.device)
        rows = torch.arange(len(turns), device=self.device)
        wanted = any(taught) and (settings.language > 0 or settings.divergence > 0)
        # The state before each token predicts it. Only the places from the first to the last such state get logits.
        first = min((len(turn.prompt) - 1 for turn, yes in zip(turns, taught, strict=True) if yes), default=0)
        kept = torch.arange(first, ids.shape[1] - 1 if wanted else first + 1, device=self.device)
        options = {"input_ids": ids, "use_cache": False, "logits_to_keep": kept}
        output = model(**options, output_hidden_states=True)
        vectors = F.normalize(output.hidden_states[-1][rows, last].float(), dim=-1)
        if self.accelerator.num_processes > 1:
            # Processes wait until every weight has a gradient, and the head has none from the embeddings.
            vectors = vectors + 0 * output.logits.float().sum()
        if not wanted:
            return vectors, {}
        goals = torch.full((len(turns), len(kept)), -100, device=self.device)
        for row, turn in enumerate(turns):
            if taught[row]:
                start = len(turn.prompt) - 1 - first
                goals[row, start : start + len(turn.answer)] = torch.tensor(turn.answer, device=self.device)
        places = goals != -100
        logits = output.logits[places].float()
        sums = {}
        if settings.language > 0:
            sums["language"] = losses.language(logits, goals[places])
        if settings.divergence > 0:
            with torch.no_grad(), self._frozen(model) as frozen:
                reference = frozen(**options).logits[places].float()
            sums["divergence"] = losses.divergence(logits, reference)
        return vectors, sums

    @contextlib.contextmanager
    def _frozen(self, model: Any) -> Iterator[Any]:
        """The base as it was before training."""
        if self.reference is not None:
            with self.accelerator.autocast():
                yield self.reference
            return
        with self.accelerator.unwrap_model(model).disable_adapter():
            yield model

    def _language_loss(self, sums: Sequence[Mapping[str, Tensor]], taught: float, parts: dict[str, Tensor]) -> Tensor:
        """The weighted mean over all taught tokens of the step, for the chunks whose sums are given."""
        loss = torch.zeros((), device=self.device)
        for chunk in sums:
            for name, value in chunk.items():
                mean = value / max(1, taught)
                parts[name] = parts.get(name, 0) + mean.detach()
                loss = loss + getattr(self.settings, name) * mean
        return loss

    def _embedding_terms(
        self, batch: Batch, views: Sequence[View], vectors: Tensor, documents: slice
    ) -> Iterator[tuple[str, float, Tensor]]:
        """Name, weight and value of each term of the embeddings.

        The queries of all processes meet the documents of all, so that every process computes the same loss, with a
        gradient for its own vectors only.
        """
        settings = self.settings
        everyone = gather_object([Answers.of(batch)])
        numbers = [number for one in everyone for number in one.documents]
        excluded = torch.cat([one.excluded(numbers) for one in everyone]).to(self.device)
        # Where the documents and the queries of each process begin among those of all.
        documents_before = list(accumulate((len(one.documents) for one in everyone), initial=0))
        queries_before = list(accumulate((len(one.positives) for one in everyone), initial=0))
        all_documents = self._gathered(vectors[documents])
        views = [view for view in views if view.name != "target" or settings.target_contrast]
        mine = {view.name: view for view in views}
        members = gather_object([{view.name: view.queries for view in views}])
        # Every process asks for the same views in the same order, even one whose records have no reasoning.
        counts = {name: sum(len(one.get(name, [])) for one in members) for name in ("direct", "target", "own")}
        for name, count in counts.items():
            if not count:
                continue
            queries = self._gathered(vectors[mine.get(name, View(name, 0, [])).rows])
            rows = [(rank, row) for rank, one in enumerate(members) for row in one.get(name, [])]
            gold = torch.tensor([documents_before[rank] + row for rank, row in rows], device=self.device)
            right = excluded[[queries_before[rank] + row for rank, row in rows]]
            weight = _share(name, counts)
            if settings.contrast > 0:
                value = losses.info_nce(queries, all_documents, gold, right, settings.temperature)
                yield f"contrast_{name}", weight * settings.contrast, value
            if settings.triplet > 0:
                value = losses.triplet_margin(queries, all_documents, gold, right, settings.margin)
                yield f"triplet_{name}", weight * settings.triplet, value
        if self.teach is None:
            return
        with torch.no_grad():
            targets = self.teach([*batch.query_bodies, *batch.document_bodies]).to(self.device)
        if settings.distil > 0 or settings.relation > 0:
            arguments = (self._gathered(vectors[: documents.stop]), self._gathered(targets))
            if settings.distil > 0:
                yield "distil", settings.distil, losses.distance(*arguments)
            if settings.relation > 0:
                value = losses.relation_divergence(*arguments, settings.temperature)
                yield "relation", settings.relation, value
        if settings.distil_reasoning > 0:
            for name in ("target", "own"):
                if counts[name]:
                    view = mine.get(name, View(name, 0, []))
                    goals = self._gathered(targets[view.queries])
                    value = losses.distance(self._gathered(vectors[view.rows]), goals)
                    yield f"distil_{name}", settings.distil_reasoning * _share(name, counts), value

    def _gathered(self, vectors: Tensor) -> Tensor:
        """The rows of all processes, with a gradient for our own."""
        if self.accelerator.num_processes == 1:
            return vectors
        sizes = gather_object([len(vectors)])
        padded = self.accelerator.pad_across_processes(vectors.detach(), dim=0)
        pieces = list(self.accelerator.gather(padded).split(max(sizes)))
        pieces = [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]
        pieces[self.accelerator.process_index] = vectors
        return torch.cat(pieces)

    def _note(self, loss: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        for name, value in parts.items():
            self._metrics["train"][name].append(float(value))
        return loss

    def _check(self, loss: Tensor, parts: Mapping[str, Tensor], batch: Batch) -> None:
        """Stops at a loss that is not a number, and keeps the batch for inspection.

        Raises:
            FloatingPointError: The loss is NaN or infinite.
        """
        if torch.isfinite(loss):
            return
        path = Path(str(self.args.output_dir)) / f"bad-batch-step-{self.state.global_step}.jsonl"
        lines = [json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n" for record in batch.records]
        write_text(path, "".join(lines))
        shown = {name: float(value) for name, value in parts.items()}
        raise FloatingPointError(
            f"The loss of step {self.state.global_step} is {float(loss)} ({shown}); its records are in {path}. A "
            "lower learning_rate, a higher temperature or float32 usually helps."
        )


def _share(view: str, counts: Mapping[str, int]) -> float:
    """Direct and reasoning embeddings count the same; the two kinds of reasoning share by their numbers."""
    return 1.0 if view == "direct" else counts[view] / (counts["target"] + counts["own"])


def _in_order(chunks: Sequence[Sequence[int]], pieces: Sequence[Tensor]) -> Tensor:
    """The rows of all chunks in the order of the turns."""
    order = torch.tensor([row for rows in chunks for row in rows])
    return torch.cat(list(pieces))[order.argsort().to(pieces[0].device)]


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextlib.contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Puts a random state back for a while; afterwards random numbers go on as if nothing had been replayed."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield
