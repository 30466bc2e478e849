"""Faster matrix products on processors for which torch's default library has no wide kernels.

torch multiplies float32 matrices with MKL, which on some processors not by Intel uses AVX2 even where they have
AVX-512. oneDNN, which torch also brings along, uses what there is, and takes half the time there. Where both are wide,
it gains a tenth on many rows, for it computes an activation or a sum within the product, and more on a few. Which one
is faster is measured once per process.
"""

from __future__ import annotations

import functools
import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchr3_embed.engine.cpu.stopwatch import least_seconds

logger = logging.getLogger(__name__)

# Either choice is right, for both compute the same, up to rounding; a gain below this is noise.
_LEAST_GAIN = 1.04
_LARGEST_ERROR = 1e-4
# Products have numbers of rows that are multiples of the second, up to the first.
_STEPS = ((8, 1), (16, 2), (32, 4), (128, 8), (512, 16), (1024, 32), (math.inf, 64))


class OneDnnLinear(nn.Linear):
    """A linear layer whose float32 products are computed by oneDNN where no gradient is needed."""

    def forward(self, input: Tensor) -> Tensor:
        """The product with the weights, shape (..., out features)."""
        if torch.is_grad_enabled() or not _is_for_onednn(self, input):
            return super().forward(input)
        return _onednn(input, self.weight, self.bias)


def product(layer: nn.Linear, input: Tensor, gelu: bool = False, add: Tensor | None = None) -> Tensor:
    """A linear layer, and what follows it, in one operation where oneDNN computes it; no gradient.

    Args:
        layer: The layer; where it is a :class:`OneDnnLinear`, oneDNN is used.
        input: Shape (..., in features).
        gelu: Whether the exact GELU is applied.
        add: Added to the product, shape (..., out features); not together with ``gelu``.

    Returns:
        Shape (..., out features).
    """
    if isinstance(layer, OneDnnLinear) and _is_for_onednn(layer, input):
        if add is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(input, add, layer.weight, layer.bias, "add")
        return _onednn(input, layer.weight, layer.bias, "gelu" if gelu else "none")
    output = F.linear(input, layer.weight, layer.bias)
    if add is not None:
        return output + add
    return F.gelu(output) if gelu else output


def rows_computed(layer: nn.Linear, rows: int) -> int:
    """How many rows a product of so many rows had best be given.

    For each size that it meets, oneDNN compiles kernels, half a millisecond and 0.6 MB for each, and keeps up to a
    thousand of them. So there are few sizes, and rows to fill them up, 2 % where there are many rows.

    Args:
        layer: The layer.
        rows: At least 0.

    Returns:
        At least ``rows``; as many where oneDNN is not used.
    """
    if not isinstance(layer, OneDnnLinear):
        return rows
    step = next(step for most, step in _STEPS if rows <= most)
    return -(-rows // step) * step


def _is_for_onednn(layer: nn.Linear, input: Tensor) -> bool:
    return (
        input.device.type == "cpu"
        and input.dtype == torch.float32
        and layer.weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def speed_up(model: nn.Module) -> None:
    """Makes the linear layers of a model use oneDNN if that is faster here; weights, names and saving stay the same.

    Args:
        model: Any model; layers of a subclass of ``nn.Linear`` are left alone.
    """
    if not onednn_is_faster():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN beats torch's default on a float32 product and GELU of the usual size, with the same result."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(n, 384, generator=generator) for n in (512, 1536))
    bias = torch.randn(1536, generator=generator)

    def stock() -> Tensor:
        return F.gelu(F.linear(rows, weight, bias))

    def other() -> Tensor:
        return _onednn(rows, weight, bias, "gelu")

    try:
        with torch.inference_mode():
            error = float((stock() - other()).abs().max())
            gain = least_seconds(stock) / least_seconds(other)
    except RuntimeError as problem:  # a build of torch whose oneDNN lacks the operation
        logger.debug("oneDNN is not used: %s", problem)
        return False
    logger.debug("oneDNN is %.2f times as fast as torch's default; largest difference %.1e", gain, error)
    return gain >= _LEAST_GAIN and error <= _LARGEST_ERROR


def _onednn(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    # The last argument tells the exact GELU from the one by tanh.
    return torch.ops.mkldnn._linear_pointwise(
        input, weight, bias, activation, [], "none" if activation == "gelu" else ""
    )
