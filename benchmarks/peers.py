"""What else there is to get an embedding out of a generated token, each in plain Hugging Face code.

A peer gets a stock model and the conversation of a checkpoint, and returns the reasoning ids of every text (embed
token not included) with the normalised embeddings (texts, d). All peers sort by length, as the engine does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from benchmarks.fidelity import forward_states, moved, shares
from searchr3_embed.conversation import Conversation
from searchr3_embed.question_side import ENCODER, QuestionSide

Result = tuple[list[list[int]], np.ndarray]


class NotAvailableError(RuntimeError):
    """A peer can't run this model here; the message says why."""


class DistinctTokens(LogitsProcessor):
    """Bars every token that a row has generated already, as the engine does for checkpoints that ask for it."""

    def __init__(self, prompt_width: int) -> None:
        self.prompt_width = prompt_width

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores with the generated tokens at minus infinity, shape (rows, vocabulary)."""
        barred = scores.scatter(1, input_ids[:, self.prompt_width :], float("-inf"))
        return cast(torch.FloatTensor, barred)


def generate_then_embed(
    model: Any, conversation: Conversation, texts: Sequence[str], batch_size: int, budget: int | None = None
) -> Result:
    """Peer (a): ``generate`` on left-padded batches, then a second forward pass over the whole sequences.

    ``generate`` derives position ids from the attention mask, so left padding is safe for absolute positions too.
    """
    prompts = conversation.reasoning_ids(texts, budget)
    reasonings: list[list[int]] = [[] for _ in prompts]
    stops = _stops(model, conversation)
    most = conversation.check_budget(budget)
    for rows, ids, mask in _batches(prompts, batch_size, model.device) if most else ():
        written = _generate(model, conversation, ids, mask, most)[:, ids.shape[1] :].tolist()
        for row, tokens in zip(rows, written, strict=True):
            reasonings[row] = tokens[: _end(tokens, stops)]
    turns = [[*prompt, *ids, conversation.embed_token_id] for prompt, ids in zip(prompts, reasonings, strict=True)]
    return reasonings, forward_states(model, turns, batch_size)


def generate_with_states(
    model: Any,
    conversation: Conversation,
    texts: Sequence[str],
    batch_size: int,
    budget: int | None = None,
    read: Callable[[Tensor, Tensor], DynamicCache] | None = None,
) -> Result:
    """Peer (b): ``generate`` that returns hidden states, and the last step that it leaves out.

    The state at a token is computed when the token is fed, one step after it was chosen. So it is there for rows that
    end before the last step of their batch; for the others the cache is fed once more.

    ``read`` takes the ids and the mask of a batch and gives a cache of all its tokens but the last; None lets the
    model read them.

    Raises:
        NotAvailableError: The model may end a turn with another token, whose state would not be the embedding.
    """
    stops = _stops(model, conversation)
    most = conversation.check_budget(budget)
    if len(stops) > 1 or not most:
        raise NotAvailableError("hidden states are those at the embed token only if that alone ends a row")
    prompts = conversation.reasoning_ids(texts, budget)
    reasonings: list[list[int]] = [[] for _ in prompts]
    states = torch.empty(len(prompts), model.config.hidden_size)
    for rows, ids, mask in _batches(prompts, batch_size, model.device):
        output = _generate(model, conversation, ids, mask, most, states=True, cache=read(ids, mask) if read else None)
        written = output.sequences[:, ids.shape[1] :]
        steps = written.shape[1]
        ends = torch.tensor([_end(tokens, stops) for tokens in written.tolist()], device=ids.device)
        found = torch.empty(len(rows), model.config.hidden_size, device=ids.device)
        for place, end in enumerate(ends.tolist()):
            if end + 1 < steps:
                found[place] = output.hidden_states[end + 1][-1][place, 0].float()
        late = (ends + 1 >= steps).nonzero().squeeze(1)
        if len(late):
            # The last token was chosen but not fed; where it is not the embed token, that one follows.
            tail = torch.cat([written[:, -1:], torch.full_like(written[:, -1:], stops[0])], dim=1)
            seen = torch.cat([mask, torch.ones_like(written[:, :-1]), torch.ones_like(tail)], dim=1)
            at = (seen.cumsum(1) - 1)[:, -2:]
            with torch.inference_mode():
                last = model.base_model(
                    input_ids=tail, attention_mask=seen, position_ids=at, past_key_values=output.past_key_values
                ).last_hidden_state
            found[late] = last[late, (ends[late] == steps).long()].float()
        states[rows] = torch.nn.functional.normalize(found, dim=-1).cpu()
        for row, tokens, end in zip(rows, written.tolist(), ends.tolist(), strict=True):
            reasonings[row] = tokens[:end]
    return reasonings, states.numpy()


def continuous_batching(
    model: Any, conversation: Conversation, texts: Sequence[str], batch_size: int, budget: int | None = None
) -> Result:
    """Peer (c): Hugging Face's continuous batching (it returns no states), then a second forward pass.

    Raises:
        NotAvailableError: The library can't do it for this model on this device.
    """
    if conversation.prompts.distinct_tokens:
        raise NotAvailableError("continuous batching takes no logits processor, which distinct_tokens needs")
    prompts = conversation.reasoning_ids(texts, budget)
    stops = _stops(model, conversation)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=conversation.check_budget(budget),
        eos_token_id=stops,
        pad_token_id=stops[0],
    )
    try:
        # A pool of its default size takes most of the machine's memory.
        from transformers import ContinuousBatchingConfig

        pool = ContinuousBatchingConfig(num_blocks=512, max_batch_tokens=2048)
        found = model.generate_batch(
            inputs=prompts, generation_config=settings, continuous_batching_config=pool, warmup=False
        )
    except (ImportError, AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        raise NotAvailableError(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from error
    reasonings: list[list[int]] = []
    by_prompt = {tuple(result.prompt_ids): result.generated_tokens for result in found.values()}
    for prompt in prompts:
        tokens = by_prompt.get(tuple(prompt))
        if tokens is None:
            raise NotAvailableError("continuous batching returned no result for some prompts")
        reasonings.append(list(tokens)[: _end(tokens, stops)])
    turns = [[*prompt, *ids, stops[0]] for prompt, ids in zip(prompts, reasonings, strict=True)]
    return reasonings, forward_states(model, turns, batch_size)


def encode_then_generate(
    stock: Any, side: QuestionSide, texts: Sequence[str], batch_size: int, budget: int | None = None
) -> Result:
    """Peer (f): the stock SentenceTransformer embeds the questions, ``generate`` thinks, and the two are added.

    Where the thinker goes on from the encoder's own pass, the encoder reads a second time for it: the stock class
    gives no keys and values away.

    Raises:
        NotAvailableError: As in :func:`generate_with_states`.
    """
    vectors = np.asarray(stock.encode_query(list(texts), batch_size=batch_size, show_progress_bar=False))
    # About a question that is foreign to the thinker nothing is written, here as in ours.
    rows = np.flatnonzero(shares(side, vectors))
    ids: list[list[int]] = [[] for _ in texts]
    states = np.zeros((len(texts), side.projection.shape[1]), dtype=np.float32)
    asked = [texts[row] for row in rows.tolist()]
    if asked and side.base == ENCODER:
        read = partial(read_with, stock[0].auto_model)
        written, found = generate_with_states(side.model, side.conversation, asked, batch_size, budget, read)
    elif asked:
        written, found = generate_then_embed(side.model, side.conversation, asked, batch_size, budget)
    if asked:
        states[rows] = found
        for row, one in zip(rows, written, strict=True):
            ids[row] = one
    most = side.conversation.check_budget(budget)
    return ids, moved(stock, side, vectors, states, [most > 0 and not row for row in ids])


def read_with(encoder: Any, ids: Tensor, mask: Tensor) -> DynamicCache:
    """The keys and values of all tokens but the last, as a bidirectional encoder computes them.

    Args:
        encoder: A BERT in transformers' own class.
        ids: Left-padded, int64 of shape (rows, tokens).
        mask: 1 where there is a token, in the same shape.
    """
    cache, seen = DynamicCache(), mask[:, :-1]
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        encoder(input_ids=ids[:, :-1], attention_mask=seen, position_ids=positions, past_key_values=cache)
    return cache


def _generate(
    model: Any,
    conversation: Conversation,
    ids: Tensor,
    mask: Tensor,
    budget: int,
    states: bool = False,
    cache: DynamicCache | None = None,
) -> Any:
    stops = _stops(model, conversation)
    distinct = [DistinctTokens(ids.shape[1])] if conversation.prompts.distinct_tokens else []
    with torch.inference_mode():
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            **({} if cache is None else {"past_key_values": cache}),
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,  # released checkpoints carry sampling defaults of their chat model
            max_new_tokens=budget,
            eos_token_id=stops,
            pad_token_id=stops[0],
            logits_processor=LogitsProcessorList(distinct),
            return_dict_in_generate=states,
            output_hidden_states=states,
        )


def _batches(
    prompts: Sequence[Sequence[int]], batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Row numbers, token ids and attention mask of left-padded batches, the longest rows first."""
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(prompts[row]) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, width - len(prompts[row]) :] = torch.tensor(prompts[row])
            mask[place, width - len(prompts[row]) :] = 1
        yield rows, ids.to(device), mask.to(device)


def _stops(model: Any, conversation: Conversation) -> list[int]:
    """The embed token, and what else ends a turn by the model's own generation settings."""
    ids = model.generation_config.eos_token_id
    further = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    return [conversation.embed_token_id, *(token for token in further if token != conversation.embed_token_id)]


def _end(tokens: Sequence[int], stops: Sequence[int]) -> int:
    return next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
