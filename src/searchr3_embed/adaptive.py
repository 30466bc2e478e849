"""Whether thinking about a query is likely to pay, told from its direct embedding: what ``reason="auto"`` asks.

The direct embedding costs a fraction of a reasoning and says what a query is about, and that says whether this
checkpoint's reasoning helps. The gate is one linear function of it, fitted to training queries by
``python -m training.calibrate`` and kept in the checkpoint (``adaptive.json``): it belongs to the weights, so other
weights need another one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import torch
from torch import Tensor

GATE_FILE = "adaptive.json"


@dataclasses.dataclass(frozen=True)
class Gate:
    """Expects ``weights @ embedding + bias`` of thinking, and wants it above ``threshold``.

    Attributes:
        weights: One number for each dimension of the unit-length direct embedding.
        bias: Added to the product.
        threshold: Queries with a higher expectation are thought about; raise it to think less.

    Raises:
        ValueError: A number is not finite, or there are no weights.
    """

    weights: tuple[float, ...]
    bias: float
    threshold: float

    def __post_init__(self) -> None:
        numbers = (*self.weights, self.bias, self.threshold)
        if not self.weights or not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ValueError(
                f"a gate needs finite numbers: weights, bias and threshold, got {len(self.weights)} weights, bias "
                f"{self.bias!r} and threshold {self.threshold!r}."
            )

    def expected_gain(self, embeddings: Tensor) -> Tensor:
        """What thinking is expected to add to the ranking of the right documents (DCG, from -1 to 1).

        Args:
            embeddings: Unit-length direct embeddings of queries, shape (queries, dimension).

        Returns:
            Float32 tensor of shape (queries,).
        """
        weights = torch.tensor(self.weights, dtype=torch.float32, device=embeddings.device)
        return embeddings.float() @ weights + self.bias

    def thinks(self, embeddings: Tensor) -> Tensor:
        """Which queries to think about: a bool tensor of shape (queries,)."""
        return self.expected_gain(embeddings) > self.threshold

    @classmethod
    def load(cls, folder: str | Path, dimension: int) -> Gate | None:
        """Reads the gate of a checkpoint folder; None if it has none.

        Args:
            folder: The checkpoint.
            dimension: Of its embeddings.

        Raises:
            ValueError: The file is damaged, or belongs to embeddings of another dimension.
        """
        path = Path(folder) / GATE_FILE
        if not path.is_file():
            return None
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            gate = cls(tuple(fields["weights"]), fields["bias"], fields["threshold"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no gate ({type(error).__name__}: {error}).") from error
        if len(gate.weights) != dimension:
            raise ValueError(f"{path} has {len(gate.weights)} weights, but embeddings have {dimension} dimensions.")
        return gate

    def save(self, folder: str | Path) -> None:
        """Writes ``adaptive.json`` into a checkpoint folder."""
        text = json.dumps(dataclasses.asdict(self))
        (Path(folder) / GATE_FILE).write_text(text + "\n", encoding="utf-8")
