"""The next token: which module gives the logits, and how one token is chosen from a hidden state.

The likeliest token is found exactly, without every logit in float32. For a few rows, the product with the vocabulary
is nothing but reading its weights, which may be as many as those of all layers together; for many rows it is as much
work as a layer or two. So where the processor multiplies 8-bit integers faster, an 8-bit copy of the weights tells
what each logit is at most, the best few are computed in float32, and their winner is proven: a row in which another
token could still win gets all its logits in float32.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from searchr3_embed.engine.cpu.kernels import few_sizes
from searchr3_embed.engine.cpu.stopwatch import least_seconds

logger = logging.getLogger(__name__)

# How many of the best are computed in float32.
_CANDIDATES = 16
# A larger copy takes too much memory for what it saves.
_LARGEST_COPY_BYTES = 1 << 26
# Of the lengths of weights and state: the rounding of float32 itself, generously.
_FLOAT_ERROR = 1e-5
# A gain below this may be noise.
_LEAST_GAIN = 1.3


class TokenChooser:
    """Chooses the next token of each row from its hidden state.

    Args:
        head: Turns hidden states into logits.
        temperature: 0 takes the likeliest token; above 0 samples from the softmax of the logits divided by it.
        generator: Random source for sampling.
        log_probabilities: Whether to tell the log-probabilities of the chosen tokens.
    """

    def __init__(
        self,
        head: Callable[[Tensor], Tensor],
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        log_probabilities: bool = False,
    ) -> None:
        self.head, self.temperature, self.generator = head, temperature, generator
        self.log_probabilities = log_probabilities
        self.before_decoder, self.decoder = split_head(head)
        self.rough = rough_head(self.decoder) if temperature == 0 and not log_probabilities else None

    def choose(self, states: Tensor, barred: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The next token of each row.

        Args:
            states: Shape (rows, hidden size).
            barred: Tokens that may not be chosen, int64 of shape (rows, any number), where -1 stands for none.

        Returns:
            Token ids, int64 of shape (rows,), and their log-probabilities after barring and temperature, float32 of
            the same shape; None where they are not wanted.
        """
        if self.rough is not None:
            return self.rough.likeliest(self.decoder, self.before_decoder(states), barred), None
        logits = self.head(states).float()
        if barred is not None:
            bar(logits, barred)
        if self.temperature > 0:
            logits = logits / self.temperature
            odds = torch.softmax(logits, dim=-1)
            chosen = torch.multinomial(odds, 1, generator=self.generator).squeeze(1)
        else:
            chosen = logits.argmax(dim=-1)
        if not self.log_probabilities:
            return chosen, None
        return chosen, logits.log_softmax(dim=-1).gather(1, chosen[:, None]).squeeze(1)


def lm_head(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The module that turns a hidden state into logits: ``lm_head``, or BERT's ``cls`` with its transform."""
    for name in ("lm_head", "cls"):
        head = getattr(model, name, None)
        if head is not None:
            return head
    raise ValueError(f"{type(model).__name__} has no language-modelling head (lm_head or cls), so it can't reason.")


def split_head(head: Any) -> tuple[Callable[[Tensor], Tensor], Any]:
    """A head as what it does before its last layer, and that layer."""
    predictions = getattr(head, "predictions", None)
    return (predictions.transform, predictions.decoder) if predictions is not None else (lambda states: states, head)


class RoughHead:
    """An 8-bit copy of the last layer of a language-modelling head, each token's weights with a scale of their own.

    Args:
        decoder: The layer; its weights are float32, of shape (vocabulary, hidden size).
    """

    def __init__(self, decoder: nn.Linear) -> None:
        weight = decoder.weight.detach()
        self.scales = (weight.abs().amax(dim=1) / 127).clamp_(min=torch.finfo(torch.float32).tiny)
        rounded = (weight / self.scales[:, None]).round_()
        self.packed = torch.ops.onednn.qlinear_prepack(rounded.to(torch.int8), None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        rounded *= self.scales[:, None]
        lengths = rounded.norm(dim=1)
        # By row: the bias, and what a unit of the state's length and of its rounding can add to a logit.
        self.terms = torch.stack(
            [
                torch.zeros_like(lengths) if decoder.bias is None else decoder.bias.detach(),
                rounded.sub_(weight).norm(dim=1) + _FLOAT_ERROR * lengths,
                lengths,
            ]
        )
        self.version = _version(decoder)

    def most(self, states: Tensor) -> Tensor:
        """What each logit is at most.

        Args:
            states: What the layer takes, float32 of shape (rows, hidden size).

        Returns:
            Shape (rows, vocabulary).
        """
        scale = float(states.abs().max()) / 127
        levels = (states / scale).round_()
        missing = few_sizes(len(states)) - len(states)
        shifted = nn.functional.pad(levels + 128, (0, 0, 0, missing)).to(torch.uint8)
        products = torch.ops.onednn.qlinear_pointwise(
            shifted, scale, 128, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )[: len(states)]
        # The integers are summed exactly, and the sum of |w_i h_i| is at most |w| |h| (Cauchy-Schwarz).
        lost = (levels.mul_(scale) - states).norm(dim=-1)
        lengths = states.norm(dim=-1)
        return products.addmm_(torch.stack([torch.ones_like(lost), lengths, lost], dim=1), self.terms)

    @torch.no_grad()
    def likeliest(self, decoder: nn.Linear, states: Tensor, barred: Tensor | None = None) -> Tensor:
        """The token with the greatest logit of each row, as ``decoder(states).argmax(-1)`` gives it.

        Args:
            decoder: The layer that this is a copy of.
            states: What the layer takes, float32 of shape (rows, hidden size).
            barred: Tokens that must not win, int64 of shape (rows, any number); -1 stands for none, and a token may
                be named more than once.

        Returns:
            Token ids, int64 of shape (rows,). Where the best logits differ by less than the rounding of float32, it
            may be another token than that of ``argmax``.
        """
        most = self.most(states)
        if barred is not None:
            bar(most, barred)
        values, candidates = most.topk(min(_CANDIDATES + 1, most.shape[1]), dim=-1)
        exact = (decoder.weight[candidates] @ states[:, :, None]).squeeze(2)
        exact = exact if decoder.bias is None else exact + decoder.bias[candidates]
        exact = exact.masked_fill(values == -torch.inf, -torch.inf)
        best, place = exact.max(dim=-1)
        chosen = candidates.gather(1, place[:, None]).squeeze(1)
        # No logit outside the candidates exceeds what the last candidate has at most. "Not greater" also catches rows
        # of NaN, and rows in which everything is barred.
        unproven = (~(best > values[:, -1])).nonzero().squeeze(1)
        if len(unproven):
            logits = decoder(states[unproven])
            if barred is not None:
                bar(logits, barred[unproven])
            chosen[unproven] = logits.argmax(dim=-1)
        return chosen


def bar(logits: Tensor, tokens: Tensor) -> None:
    """Sets the logits of tokens to minus infinity, in place.

    Args:
        logits: Shape (rows, vocabulary).
        tokens: Int64 of shape (rows, any number); -1 stands for none.
    """
    barred = torch.where(tokens >= 0, -torch.inf, logits.gather(1, tokens.clamp(min=0)))
    # -1 writes the logit of token 0 back as it is; if token 0 is barred as well, amin keeps the minus infinity.
    logits.scatter_reduce_(1, tokens.clamp(min=0), barred, "amin")


def rough_head(decoder: nn.Module) -> RoughHead | None:
    """The copy of a head's last layer, made anew when its weights have changed; None where it does not pay."""
    if (
        type(decoder) is not nn.Linear  # an adapter's layer computes more
        or decoder.weight.dtype != torch.float32
        or decoder.weight.device.type != "cpu"
        or decoder.weight.numel() > _LARGEST_COPY_BYTES
        or torch.is_autocast_enabled("cpu")
        or decoder.weight.is_inference()  # such a tensor can't tell whether it changed
        or not int8_is_faster()
    ):
        return None
    rough = _COPIES.get(decoder)
    if rough is None or rough.version != _version(decoder):
        rough = _COPIES[decoder] = RoughHead(decoder)
    return rough


# Kept beside the layers, not in them, so that a copy is neither saved nor moved nor sent to another process.
_COPIES: weakref.WeakKeyDictionary[nn.Module, RoughHead] = weakref.WeakKeyDictionary()


def _version(decoder: nn.Linear) -> tuple[int, int]:
    """A value that changes when the weights do."""
    return decoder.weight.data_ptr(), decoder.weight._version


@functools.cache
def int8_is_faster() -> bool:
    """Whether an 8-bit product for one row is faster here than a float32 one, and as exact as assumed above."""
    # The engine asks in inference mode, whose tensors can't tell whether they changed.
    # Random numbers of whoever asks are left alone: a training that went on after a kill would draw others.
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        decoder = nn.Linear(384, 16384, bias=False)
        # Some processors add pairs of products in 16 bits, which the largest numbers overflow.
        decoder.weight[0] = 1
    row, largest = torch.randn(1, 384, generator=torch.Generator().manual_seed(0)), torch.ones(1, 384)
    try:
        with torch.no_grad():
            copy = RoughHead(decoder)
            for states in (row, largest, -largest):
                if bool((decoder(states) > copy.most(states)).any()):
                    return False
            gain = least_seconds(lambda: decoder(row)) / least_seconds(lambda: copy.most(row))
    except (RuntimeError, AttributeError, NotImplementedError) as problem:  # this build of torch lacks the operation
        logger.debug("8-bit products are not used: %s", problem)
        return False
    logger.debug("an 8-bit product of one row is %.2f times as fast as a float32 one", gain)
    return gain >= _LEAST_GAIN
