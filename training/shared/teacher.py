"""A sentence-transformers model as the teacher of a run: token ids in, its unit vectors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from searchr3_embed.conversation import Conversation
from training.evaluate.models import load_embedder

# Token ids of texts -> the teacher's unit vectors, shape (texts, dimension).
Teach = Callable[[Sequence[Sequence[int]]], Tensor]


def load_teacher(name: str, conversation: Conversation, args: Any, dimension: int | None = None) -> Teach:
    """Loads a teacher.

    Args:
        name: Its folder or hub id; "teacher" is all-MiniLM-L6-v2.
        conversation: Decodes the ids.
        args: Settings of a run: its device, and whether it computes in bfloat16.
        dimension: What its vectors must have, to be compared with those of the model in training; None for any.

    Raises:
        ValueError: It cannot be loaded, or has another dimension.
    """
    model = load_embedder(name).to(args.device).eval()
    found = model.get_embedding_dimension()
    if dimension is not None and found != dimension:
        raise ValueError(
            f"teacher {name!r} has vectors of {found} dimensions and the model of {dimension}; distil_weight and "
            "distil_reasoning_weight need the same (relation_weight of stage 1 does not)."
        )

    def teach(bodies: Sequence[Sequence[int]]) -> Tensor:
        texts = [conversation.decode(body) for body in bodies]
        with torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)):
            vectors = model.encode(texts, convert_to_tensor=True, show_progress_bar=False, batch_size=32)
        return F.normalize(vectors.float(), dim=-1)

    return teach
