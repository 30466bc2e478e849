"""nDCG@10 of a model in training on dev sets, to choose checkpoints by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from searchr3_embed.conversation import Conversation
from searchr3_embed.engine import decode, forward
from training.data.beir import BeirData
from training.data.records import Record
from training.evaluate.report import NDCG
from training.evaluate.run import dense_rows, rank, score

# Set, unit rows of its queries after reasoning, unit rows of its documents, what the model wrote -> a reward each.
Judge = Callable[[BeirData, Tensor, Tensor, Sequence[decode.Generation]], np.ndarray]

# Longer texts tell little more about which checkpoint is better, and cost most of the time.
DOCUMENT_TOKENS = 128
QUERY_TOKENS = 64


def held_out_set(source: str, records: Sequence[Record]) -> BeirData:
    """A retrieval set of training records kept apart: their queries against the first positive of each."""
    number = {text: str(i) for i, text in enumerate(dict.fromkeys(record.positives[0] for record in records))}
    judged: dict[str, dict[str, int]] = {}
    for i, record in enumerate(records):
        judged[f"q{i}"] = {number[text]: 1 for text in record.positives if text in number}
    queries = {f"q{i}": record.query for i, record in enumerate(records)}
    return BeirData(source, {identifier: text for text, identifier in number.items()}, queries, judged)


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
