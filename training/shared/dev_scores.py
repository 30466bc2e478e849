"""Scores of a model in training on dev sets, which choose the best checkpoint: nDCG@10, direct and reasoning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from searchr3_embed.conversation import Conversation
from searchr3_embed.engine import decode, forward
from training.data.beir import BeirData, beir_folders, read_beir
from training.data.held_out import retrieval_set
from training.data.records import Record
from training.evaluate.metrics import NDCG, dense_rows, rank, score

# Set, unit rows of its queries after reasoning, unit rows of its documents, what the model wrote -> a reward each.
Judge = Callable[[BeirData, Tensor, Tensor, Sequence[decode.Generation]], np.ndarray]

# Texts are cut there: longer ones say little more about which checkpoint is better, and take most of the time.
DOCUMENT_TOKENS = 128
QUERY_TOKENS = 64


def dev_sets(args: Any, held_out: Mapping[str, Sequence[Record]]) -> list[BeirData]:
    """The sets that choose the best checkpoint: those that the settings name, and the records that are kept apart."""
    sets = [read_beir(folder, split="dev") for folder in beir_folders([Path(path) for path in args.dev or []])]
    # The corpus of a source is the first positive of each record.
    return sets + [
        retrieval_set(source, records, [record.positives[0] for record in records])
        for source, records in held_out.items()
        if records
    ]


@torch.no_grad()
def measure(
    model: PreTrainedModel, conversation: Conversation, sets: Sequence[BeirData], judge: Judge | None = None
) -> Mapping[str, float]:
    """Measures direct and reasoning queries against direct documents.

    Args:
        model: A causal language model.
        conversation: Its words.
        sets: What to measure on.
        judge: Gives the reward of stage 2, where it is wanted.

    Returns:
        ``ndcg@10_direct`` and ``ndcg@10_reasoning``, the means over the sets; ``embed_token_share``,
        ``reasoning_tokens`` and, with a judge, ``reward``, the means over the queries.
    """
    direct: list[float] = []
    reasoning: list[float] = []
    finished: list[bool] = []
    tokens: list[int] = []
    rewards: list[float] = []
    for data in sets:
        documents = _unit(forward.embed(model, _turns(conversation, list(data.documents.values()), DOCUMENT_TOKENS)))
        texts = list(data.queries.values())
        queries = _unit(forward.embed(model, _turns(conversation, texts, QUERY_TOKENS)))
        bodies = [body[:QUERY_TOKENS] for body in conversation.text_ids(texts)]
        generations = decode.think(
            model,
            conversation.reasoning_turns(bodies),
            embed_token_id=conversation.embed_token_id,
            max_new_tokens=conversation.default_max_reasoning_tokens,
            stop_token_ids=decode.stop_token_ids(model),
            distinct=conversation.prompts.distinct_tokens,
        )
        thoughtful = _unit(torch.stack([generation.state for generation in generations]))
        direct.append(_ndcg(data, queries, documents))
        reasoning.append(_ndcg(data, thoughtful, documents))
        finished += [generation.finished for generation in generations]
        tokens += [len(generation.ids) for generation in generations]
        if judge is not None:
            rewards += judge(data, thoughtful, documents, generations).tolist()
    return {
        "ndcg@10_direct": sum(direct) / len(direct),
        "ndcg@10_reasoning": sum(reasoning) / len(reasoning),
        "embed_token_share": sum(finished) / len(finished),
        "reasoning_tokens": sum(tokens) / len(tokens),
        **({"reward": sum(rewards) / len(rewards)} if rewards else {}),
    }


def _turns(conversation: Conversation, texts: Sequence[str], length: int) -> list[list[int]]:
    return conversation.direct_turns([body[:length] for body in conversation.text_ids(texts)])


def _unit(states: Tensor) -> Tensor:
    return F.normalize(states.float(), dim=-1)


def _ndcg(data: BeirData, queries: Tensor, documents: Tensor) -> float:
    scores = score(data, rank(data, dense_rows(queries.cpu().numpy(), documents.cpu().numpy())))
    return sum(row[NDCG] for row in scores.values()) / len(scores)
