"""Log-probabilities of what the policy wrote, as the engine that wrote it has them.

What TRL computes from its own fused language-modelling head is right only for models with rotary positions whose head
is one matrix. It pads on the left, which gives models with absolute positions wrong places, and it leaves out the
transform of BERT's head. For those models, and where tokens that are written already are barred (``distinct_tokens``),
the log-probabilities are computed here, so that the policy that is trained is the one that the engine samples from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from training.shared.padding import chunks_by_length, pad

# Most tokens of a row in which rollouts share a prompt. Attention from one rollout to another is computed before it is
# masked, so long rows waste work.
_LONGEST_TREE = 1024


def fused_head_is_right(model: PreTrainedModel) -> bool:
    """Whether TRL's fused head gives this model's log-probabilities, see the module docstring."""
    rotary = getattr(model.config, "rope_parameters", None) is not None
    return rotary and getattr(model, "lm_head", None) is model.get_output_embeddings()


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
    groups, trees = _share_prompts(prompts, answers)
    states: list[Tensor] = []
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
        states.append(output.hidden_states[-1].flatten(0, 1))
    flat = [place for places in before for place in places]
    return torch.cat(states), torch.tensor(flat, device=device), torch.tensor(last, device=device)


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
