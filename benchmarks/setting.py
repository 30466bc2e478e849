"""What the workloads share: texts, our embedder, and stock models made from the same weights."""

from __future__ import annotations

import dataclasses
import random
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks import steered
from benchmarks.fidelity import sample_queries
from searchr3_embed import ReasoningEmbedder
from training.data.beir import beir_folders, read_beir
from training.data.lines import DataError


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much the workloads compute.

    Attributes:
        queries: Of W1 and W2.
        continuous: Queries of W2's comparison with continuous batching, which is slow on a CPU.
        single: Queries of W3.
        documents: Most documents of W4 and W6; None takes all.
        document_sample: Of W4, to choose batch sizes on where there are more documents.
        concurrent: Calls of W5.
        linear_documents: Of W7.
        linear_queries: Of W7.
        batch_sizes: Tried for queries.
        document_batch_sizes: Tried for documents.
    """

    queries: int = 256
    continuous: int = 32
    single: int = 64
    documents: int | None = None
    document_sample: int = 256
    concurrent: int = 64
    linear_documents: tuple[int, ...] = (1000, 4000, 16000)
    linear_queries: tuple[int, ...] = (64, 256, 1024)
    batch_sizes: tuple[int, ...] = (32, 64)
    document_batch_sizes: tuple[int, ...] = (32, 64)


FULL = Sizes()
QUICK = Sizes(
    queries=16,
    continuous=2,
    single=4,
    documents=32,
    document_sample=16,
    concurrent=8,
    linear_documents=(16, 32),
    linear_queries=(4, 8),
    batch_sizes=(8,),
    document_batch_sizes=(8, 16),
)


class Setting:
    """Loads what a workload asks for, once, on the CPU.

    Args:
        data: A folder of BEIR-layout folders.
        model: Alias, folder or hub id of the model.
        scratch: Folder for saved models, given away afterwards.
        sizes: How much to compute.
        repeats: Timed runs of each side.
        shape: Size of W2's model; the default has about 20 million parameters.
        python: Runs the processes of W6.

    Raises:
        DataError: The data folder holds no set.
    """

    def __init__(
        self,
        data: Path,
        model: str,
        scratch: Path,
        sizes: Sizes = FULL,
        repeats: int = 5,
        shape: steered.Shape | None = None,
        python: str = sys.executable,
    ) -> None:
        self.data, self.model, self.scratch, self.sizes = data, model, scratch, sizes
        self.repeats, self.shape, self.python = repeats, shape, python
        self.sets = {folder.resolve().name: folder for folder in beir_folders([data])}

    def queries(self, count: int) -> list[str]:
        """Distinct queries of mixed length, as many from each set."""
        return sample_queries([self.data], count)

    def documents(self, name: str) -> list[str]:
        """The documents of one set, at most as many as the sizes say."""
        if name not in self.sets:
            raise DataError(f"{self.data}: no set {name!r} here; there are {', '.join(sorted(self.sets))}")
        return list(read_beir(self.sets[name]).documents.values())[: self.sizes.documents]

    def mixed_documents(self, count: int) -> list[str]:
        """Distinct documents of all sets, shuffled: any beginning of the list has the same mix of lengths."""
        pool = dict.fromkeys(text for folder in self.sets.values() for text in read_beir(folder).documents.values())
        if len(pool) < count:
            raise DataError(f"{count} documents wanted, but the sets hold only {len(pool)} distinct ones")
        return random.Random(0).sample(list(pool), count)

    @cached_property
    def embedder(self) -> ReasoningEmbedder:
        """Ours."""
        return ReasoningEmbedder(self.model, device="cpu", on_truncate="ignore")

    @cached_property
    def folder(self) -> Path:
        """The model as ``save_pretrained`` writes it."""
        folder = self.scratch / "model"
        self.embedder.save_pretrained(str(folder))
        return folder

    @cached_property
    def stock_lm(self) -> Any:
        """The same weights in transformers' own class, without our kernels; of a single model."""
        return stock_lm(self.folder)

    @property
    def has_thinker(self) -> bool:
        """Whether the model is an encoder with a thinker: then the peers are others."""
        return self.embedder.question_side is not None

    @cached_property
    def stock_embedder(self) -> Any:
        """The stock SentenceTransformer on the saved folder."""
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(self.folder), device="cpu")

    @cached_property
    def steered_folder(self) -> Path:
        """A random Qwen2 with a system prompt of 120 tokens, whose rows end after 5 to 60 tokens."""
        return steered.save(self.scratch / "steered", self.queries(self.sizes.queries), self.shape)

    @cached_property
    def steered_embedder(self) -> ReasoningEmbedder:
        """Ours, on the steered model; where there is an encoder, beside it, with a P that moves vectors."""
        if self.has_thinker:
            joined = ReasoningEmbedder.from_encoder(
                self.folder, self.steered_folder, device="cpu", on_truncate="ignore"
            )
            side = joined.question_side
            assert side is not None
            draw = torch.Generator().manual_seed(0)
            side.projection = torch.randn(side.projection.shape, generator=draw) / side.projection.shape[1]
            return joined
        return ReasoningEmbedder(str(self.steered_folder), device="cpu", on_truncate="ignore")

    @cached_property
    def steered_lm(self) -> Any:
        """The steered model in transformers' own class."""
        return stock_lm(self.steered_folder)


def stock_lm(folder: Path, device: str = "cpu") -> Any:
    """A causal language model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")  # a folder here  # nosec B615
    return model.to(device).eval()
