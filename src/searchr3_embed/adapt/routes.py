"""Trained routes of questions beside an encoder: a whole encoder, or a linear change of its vector."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import Tensor, nn

from searchr3_embed.adapt.learner import Candidate, Schedule, load_state, trained_state
from searchr3_embed.embedder import ReasoningEmbedder
from searchr3_embed.query_route import QueryRoute

if TYPE_CHECKING:
    from peft import PeftModel

_BATCH = 64


def base_pipeline(embedder: ReasoningEmbedder) -> SentenceTransformer:
    """What embeds documents, and questions that nobody has thought about: the encoder."""
    side = embedder.question_side
    assert side is not None
    return side.pipeline(embedder)


def starting_modules(embedder: ReasoningEmbedder) -> list[nn.Module]:
    """The modules that a route of questions starts from: the encoder's, or those of the route that it has already."""
    side = embedder.question_side
    return list((side.questions if isinstance(side, QueryRoute) else embedder).children())


def with_route(embedder: ReasoningEmbedder, questions: list[nn.Module]) -> ReasoningEmbedder:
    """The encoder of an embedder with another route for questions.

    Args:
        embedder: It keeps its own; both share the encoder's modules.
        questions: The modules of the route.
    """
    made = with_routes(embedder, embedder.encoder_name, questions, list(base_pipeline(embedder).children()))
    made._on_truncate = embedder.on_truncate
    return made


def with_routes(
    like: SentenceTransformer, name: str, questions: list[nn.Module], documents: list[nn.Module]
) -> ReasoningEmbedder:
    """An encoder of two routes.

    Args:
        like: Gives prompts, similarity and device.
        name: Of the encoder.
        questions: The modules of the route of questions.
        documents: Those of the route of documents.
    """
    pipeline = SentenceTransformer(
        modules=[Router.for_query_document(cast(Any, questions), cast(Any, documents))],
        device=str(like.device),
        prompts=cast(Any, dict(like.prompts)),
        default_prompt_name=like.default_prompt_name,
        similarity_fn_name=like.similarity_fn_name,
        truncate_dim=like.truncate_dim,
    )
    made = ReasoningEmbedder.__new__(ReasoningEmbedder)
    vars(made).update(vars(pipeline))
    made.encoder_name, made.question_side = name, QueryRoute(made)
    return made.eval()


def query_prompt(embedder: ReasoningEmbedder) -> str:
    """What the encoder puts before a question."""
    return embedder._resolve_prompt(None, "query") or ""


class QuestionEncoder:
    """A copy of the encoder that reads questions only.

    Args:
        embedder: Its encoder is copied.
        questions: To train with.
        lora: Rank of low-rank differences; 0 trains all weights.
    """

    def __init__(self, embedder: ReasoningEmbedder, questions: Sequence[str], lora: int = 0) -> None:
        self.embedder, self.questions, self.prompt = embedder, list(questions), query_prompt(embedder)
        modules = copy.deepcopy(starting_modules(embedder))
        device = str(embedder.device)
        # Half precision can't hold small steps.
        self.pipeline = SentenceTransformer(modules=cast(Any, modules), device=device).float()
        # Without dropout a run can be repeated to the bit.
        self.pipeline.eval()
        self.lora = self._with_lora(lora) if lora else None
        self.trained = {name: value for name, value in self.pipeline.named_parameters() if value.requires_grad}
        rates = (2e-4, 5e-4, 1e-4) if lora else (5e-5, 1e-4, 2e-5)
        candidates = (
            Candidate(rates[0], 10.0), Candidate(rates[0], 3.0), Candidate(rates[1], 10.0), Candidate(rates[2], 10.0),
        )  # fmt: skip
        self.schedule = Schedule(candidates, every=10, most_steps=400)

    def _with_lora(self, rank: int) -> PeftModel:
        from peft import LoraConfig, get_peft_model

        network = getattr(self.pipeline[0], "auto_model", None)
        if network is None:
            raise ValueError("This encoder has no layers for low-rank differences: train it in full (--lora 0).")
        self.pipeline.requires_grad_(False)
        # Its layers are put into the network itself, which the pipeline goes on using.
        return cast(Any, get_peft_model)(
            network, LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules="all-linear")
        )

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """All weights at one rate."""
        return [{"params": list(self.trained.values()), "lr": rate}]

    def _forward(self, texts: Sequence[str]) -> Tensor:
        # Through the stock modules, so that every encoder is read as it reads: prompts, poolings, dense layers.
        features = self.pipeline.preprocess(cast(Any, list(texts)), prompt=self.prompt or None, task="query")
        device = self.pipeline.device
        features = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in features.items()}
        return self.pipeline.forward(features, task="query")["sentence_embedding"].float()

    def moved(self, rows: Sequence[int]) -> Tensor:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        return self._forward([self.questions[row] for row in rows])

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> Tensor:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        parts = [self._forward([texts[row] for row in order[i : i + _BATCH]]) for i in range(0, len(order), _BATCH)]
        found = torch.cat(parts)
        result = torch.empty_like(found)
        result[torch.tensor(order, device=found.device)] = found
        return result

    def state(self) -> dict[str, Tensor]:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        return trained_state(self.trained)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        load_state(self.trained, state)

    def finished(self) -> ReasoningEmbedder:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        if self.lora is not None:
            cast(Any, self.lora).merge_and_unload()
        self.pipeline.requires_grad_(False)
        return with_route(self.embedder, list(self.pipeline.children()))


class Projection:
    """A linear change of the encoder's vector: x + W x, W zero at the start.

    Args:
        embedder: Its encoder.
        questions: To train with.
    """

    def __init__(self, embedder: ReasoningEmbedder, questions: Sequence[str]) -> None:
        self.embedder, self.prompt = embedder, query_prompt(embedder)
        self.start = starting_modules(embedder)
        self.before = SentenceTransformer(modules=cast(Any, self.start), device=str(embedder.device)).eval()
        self.base = self._before(questions)
        dimension = self.base.shape[1]
        zero = torch.zeros(dimension, dimension, device=self.base.device)
        self.dense = Dense(
            dimension, dimension, bias=False, activation_function=None, init_weight=zero, use_residual=True
        )
        self.trained = dict(self.dense.named_parameters())
        # A unit vector is brought back to its length.
        self.normalise = isinstance(self.start[-1], Normalize)
        self.schedule = Schedule(
            (Candidate(1e-3, 3.0), Candidate(1e-3, 1.0), Candidate(1e-3, 10.0), Candidate(3e-4, 3.0)),
            every=10,
            most_steps=1000,
        )

    @torch.no_grad()
    def _before(self, texts: Sequence[str]) -> Tensor:
        found = self.before.encode(
            list(texts), prompt=self.prompt or None, task="query", convert_to_numpy=True, show_progress_bar=False
        )
        return torch.from_numpy(np.array(found, dtype=np.float32)).to(self.embedder.device)

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """All weights at one rate."""
        return [{"params": list(self.trained.values()), "lr": rate}]

    def _after(self, base: Tensor) -> Tensor:
        moved = cast(Tensor, self.dense({"sentence_embedding": base})["sentence_embedding"])
        return nn.functional.normalize(moved, dim=-1) if self.normalise else moved

    def moved(self, rows: Sequence[int]) -> Tensor:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        return self._after(self.base[torch.tensor(list(rows), device=self.base.device)])

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> Tensor:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        return self._after(self._before(texts))

    def state(self) -> dict[str, Tensor]:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        return trained_state(self.trained)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        load_state(self.trained, state)

    def finished(self) -> ReasoningEmbedder:
        """See :class:`searchr3_embed.adapt.learner.Learner`."""
        self.dense.requires_grad_(False)
        return with_route(self.embedder, [*self.start, self.dense, *([Normalize()] if self.normalise else [])])
