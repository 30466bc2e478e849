"""What was written behind prompts, read in few forward passes: answers to the same prompt share it.

A prompt and the answers to it make a tree: each answer stands at the positions behind the prompt, blind to the others.
A thinker on top of an encoder's own pass does not read the prompt at all: it looks back at the encoder's keys and
values, which need no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from searchr3_embed.adapt.padding import chunks_by_length, pad
from searchr3_embed.engine.encode import padding_mask

# Most tokens of a row in which answers share a prompt. Attention from one answer to another is computed before it is
# masked, so long rows waste work.
_LONGEST_TREE = 1024


def states(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    tokens: int | None,
    device: torch.device,
    encoder: PreTrainedModel | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Last hidden states of prompts and answers.

    Args:
        model: A causal language model, in its wrappers or not.
        prompts: Token ids; equal ones are read once.
        answers: Token ids, one list for each prompt.
        tokens: Padded tokens of one forward pass; None takes all rows at once.
        device: Where to compute.
        encoder: Reads all but the last token of each prompt, without gradient, where the thinker works on its pass.

    Returns:
        States one after another, shape (any number, dimension); the numbers in them of those before each token of each
        answer, answer after answer; and the number of the state at the last token of each answer (of its prompt, where
        there is no answer).
    """
    if encoder is not None:
        return _behind_encoder(model, encoder, prompts, answers, tokens, device)
    groups, trees = _share_prompts(prompts, answers)
    found: list[Tensor] = []
    before: list[list[int]] = [[] for _ in prompts]
    last = [0] * len(prompts)
    start = 0
    for chunk in chunks_by_length(trees, tokens or len(trees) * max(map(len, trees))):
        ids = pad([trees[number] for number in chunk])
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
        output = model(
            input_ids=ids.to(device),
            attention_mask=_tree_mask(branch).to(device),
            position_ids=positions.to(device),
            use_cache=False,
            output_hidden_states=True,
            logits_to_keep=1,
        )
        found.append(output.hidden_states[-1].flatten(0, 1))
    flat = [place for places in before for place in places]
    return torch.cat(found), torch.tensor(flat, device=device), torch.tensor(last, device=device)


def _behind_encoder(
    model: Any,
    encoder: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    tokens: int | None,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for a thinker that looks back at the encoder's keys and values."""
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(tuple(prompt), []).append(row)
    distinct = list(rows_of)
    found: list[Tensor] = []
    before: list[list[int]] = [[] for _ in prompts]
    last = [0] * len(prompts)
    start = 0
    # Questions of like length together: padding costs the encoder's pass, and attention behind it.
    for chunk in chunks_by_length(distinct, tokens or len(distinct) * max(map(len, distinct))):
        rows = [row for number in chunk for row in rows_of[distinct[number]]]
        written = [[prompts[row][-1], *answers[row]] for row in rows]
        texts = [distinct[number][:-1] for number in chunk]
        copies = [place for place, number in enumerate(chunk) for _ in rows_of[distinct[number]]]
        states_of_rows = _read_behind(model, encoder, texts, copies, written, device)
        width = states_of_rows.shape[1]
        for place, row in enumerate(rows):
            offset = start + place * width
            before[row] = list(range(offset, offset + len(answers[row])))
            last[row] = offset + len(answers[row])
        start += len(rows) * width
        found.append(states_of_rows.flatten(0, 1))
    flat = [place for places in before for place in places]
    return torch.cat(found), torch.tensor(flat, device=device), torch.tensor(last, device=device)


def _read_behind(
    model: Any,
    encoder: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    copies: Sequence[int],
    written: Sequence[Sequence[int]],
    device: torch.device,
) -> Tensor:
    """Last hidden states of rows of written tokens, each behind one of the texts.

    Args:
        model: The thinker.
        encoder: Reads the texts, without gradient.
        texts: Token ids.
        copies: The text of each row.
        written: Token ids of each row.
        device: Where to compute.

    Returns:
        Shape (rows, longest, hidden size).
    """
    ids = pad(texts).to(device)
    lengths = torch.tensor([len(text) for text in texts], device=device)
    real = torch.arange(ids.shape[1], device=device) < lengths[:, None]
    cache = DynamicCache()
    with torch.no_grad():
        encoder.base_model(input_ids=ids, attention_mask=padding_mask(real, encoder.dtype), past_key_values=cache)
    rows = torch.tensor(copies, device=device)
    cache.batch_select_indices(rows)
    new = pad(written).to(device)
    places = torch.arange(new.shape[1], device=device)
    causal = (places[None, :] <= places[:, None]).expand(len(written), -1, -1)
    seen = torch.cat([real[rows][:, None].expand(-1, new.shape[1], -1), causal], dim=2)
    hidden = torch.zeros(seen.shape, device=device).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    output = model(
        input_ids=new,
        attention_mask=hidden,
        position_ids=lengths[rows][:, None] + places,
        past_key_values=cache,
        use_cache=True,
        output_hidden_states=True,
        logits_to_keep=1,
    )
    return output.hidden_states[-1]


def _share_prompts(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Groups of rows that share a prompt, and for each group the prompt followed by all answers."""
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
    return groups, trees


def _tree_mask(branch: Tensor) -> Tensor:
    """Additive attention mask: a token sees what stands before it in the prompt and in its own answer."""
    length = branch.shape[1]
    seen = (branch[:, None] == branch[:, :, None]) | (branch[:, None] == 0)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) | ~seen
    return torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)[:, None]
