"""The next token: which module gives the logits, and how one token is chosen from a hidden state.

The likeliest token is found exactly, without every logit in float32. For a few rows, the product with the vocabulary
is nothing but reading its weights: for searchr3-mini they are as many as those of all layers together. So where the
processor multiplies bfloat16 faster, a bfloat16 copy of the weights gives rough logits, the best few are computed
again in float32, and their winner is proven: what bfloat16 can have lost is bounded, and a row in which another token
could still win gets all its logits in float32.
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

from searchr3_embed.engine.cpu.kernels import OneDnnLinear
from searchr3_embed.engine.cpu.stopwatch import least_seconds

logger = logging.getLogger(__name__)

# How many of the best rough logits are computed again.
_CANDIDATES = 16
# A copy larger than this is too much memory for what it saves.
_LARGEST_COPY_BYTES = 1 << 26
# What rounding to bfloat16 changes at most, relative to the number: it keeps 8 bits.
_UNIT = 2.0**-8
# Each factor of a product is rounded, and so is the sum; the rest is for the rounding of float32 itself.
_SLACK = 1.01
# What a faster product must gain, so that no noise explains it.
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
    """A bfloat16 copy of the last layer of a language-modelling head.

    Args:
        decoder: The layer; its weights are float32, of shape (vocabulary, hidden size).
    """

    def __init__(self, decoder: nn.Linear) -> None:
        self.weight = decoder.weight.detach().bfloat16()
        self.bias = None if decoder.bias is None else decoder.bias.detach()
        self.longest = float(decoder.weight.detach().norm(dim=1).max())
        self.version = _version(decoder)

    @torch.no_grad()
    def likeliest(self, decoder: nn.Linear, states: Tensor, barred: Tensor | None = None) -> Tensor:
        """The token with the greatest logit of each row, as ``decoder(states).argmax(-1)`` gives it.

        Args:
            decoder: The layer that this is a copy of.
            states: What the layer takes, float32 of shape (rows, hidden size).
            barred: Tokens that may not win, int64 of shape (rows, any number); the same one may come several times,
                and -1 stands for none.

        Returns:
            Token ids, int64 of shape (rows,). Of tokens whose logits differ by less than float32 can tell, it may
            take another one than ``argmax``.
        """
        rough = nn.functional.linear(states.bfloat16(), self.weight).float()
        # The bias is added in float32, where it costs no accuracy.
        rough = rough if self.bias is None else rough + self.bias
        if barred is not None:
            bar(rough, barred)
        values, candidates = rough.topk(min(_CANDIDATES + 1, rough.shape[1]), dim=-1)
        exact = (decoder.weight[candidates] @ states[:, :, None]).squeeze(2)
        exact = exact if decoder.bias is None else exact + decoder.bias[candidates]
        exact = exact.masked_fill(values == -torch.inf, -torch.inf)
        best, place = exact.max(dim=-1)
        chosen = candidates.gather(1, place[:, None]).squeeze(1)
        # The sum of |w_i h_i| is at most |w| |h| (Cauchy-Schwarz). The last candidate's rough logit bounds those of
        # all tokens that are none; what is rounded at the end is a logit without its bias.
        product = self.longest * states.norm(dim=-1)
        lost = _SLACK * (2 * _UNIT + _UNIT**2 + _UNIT) * product
        # So written, it also takes rows of NaN, and rows in which everything is barred.
        unproven = (~(best > values[:, -1] + lost)).nonzero().squeeze(1)
        if len(unproven):
            logits = decoder(states[unproven])
            if barred is not None:
                bar(logits, barred[unproven])
            chosen[unproven] = logits.argmax(dim=-1)
        return chosen


def bar(logits: Tensor, tokens: Tensor) -> None:
    """Makes tokens impossible, in place.

    Args:
        logits: Shape (rows, vocabulary).
        tokens: Int64 of shape (rows, any number); -1 stands for none.
    """
    barred = torch.where(tokens >= 0, -torch.inf, logits.gather(1, tokens.clamp(min=0)))
    # Where -1 stood, token 0 is written back as it was, unless it is barred as well; amin lets that win.
    logits.scatter_reduce_(1, tokens.clamp(min=0), barred, "amin")


def rough_head(decoder: nn.Module) -> RoughHead | None:
    """The copy of a head's last layer, made once and again after its weights changed; None where it does not pay."""
    if (
        type(decoder) not in (nn.Linear, OneDnnLinear)  # an adapter's layer computes more
        or not isinstance(decoder, nn.Linear)
        or decoder.weight.dtype != torch.float32
        or decoder.weight.device.type != "cpu"
        or decoder.weight.numel() * 2 > _LARGEST_COPY_BYTES
        or torch.is_autocast_enabled("cpu")
        or decoder.weight.is_inference()  # such a tensor can't tell whether it changed
        or not bfloat16_is_faster()
    ):
        return None
    rough = _COPIES.get(decoder)
    if rough is None or rough.version != _version(decoder):
        rough = _COPIES[decoder] = RoughHead(decoder)
    return rough


# Beside the layers, not in them: a copy is neither saved nor moved nor sent to another process.
_COPIES: weakref.WeakKeyDictionary[nn.Module, RoughHead] = weakref.WeakKeyDictionary()


def _version(decoder: nn.Linear) -> tuple[int, int]:
    """Changes when the weights do."""
    return decoder.weight.data_ptr(), decoder.weight._version


@functools.cache
def bfloat16_is_faster() -> bool:
    """Whether a bfloat16 product for one row is faster here than a float32 one, and as exact as assumed above."""
    generator = torch.Generator().manual_seed(0)
    row, weight = (torch.randn(n, 384, generator=generator) for n in (1, 16384))
    rough_row, rough_weight = row.bfloat16(), weight.bfloat16()
    with torch.inference_mode():
        exact = nn.functional.linear(row, weight)
        error = (nn.functional.linear(rough_row, rough_weight).float() - exact).abs()
        bound = _SLACK * 3 * _UNIT * weight.norm(dim=1) * row.norm()
        gain = least_seconds(lambda: nn.functional.linear(row, weight)) / least_seconds(
            lambda: nn.functional.linear(rough_row, rough_weight)
        )
    logger.debug("a bfloat16 product of one row is %.2f times as fast as a float32 one", gain)
    return gain >= _LEAST_GAIN and bool((error <= bound).all())
