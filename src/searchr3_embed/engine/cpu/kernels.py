"""Faster matrix products on processors for which torch's default library has no wide kernels.

torch multiplies float32 matrices with MKL. On some processors that are not Intel's, MKL uses AVX2 although they have
AVX-512; oneDNN, which comes with torch too, uses AVX-512 there and takes half the time. Where both use it, oneDNN is
still a tenth faster on many rows, because it computes an activation or a sum within the product, and more than that on
few rows. Which one is faster is measured once per process.
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

# A gain below this is noise. Neither choice is wrong: both compute the same, up to rounding.
_LEAST_GAIN = 1.04
_LARGEST_ERROR = 1e-4
# Up to the first number of rows, a product gets a multiple of the second.
_STEPS = ((8, 1), (16, 2), (32, 4), (128, 8), (512, 16), (1024, 32), (math.inf, 64))


class OneDnnLinear(nn.Linear):
    """A linear layer whose float32 products are computed by oneDNN where no gradient is needed."""

    def forward(self, input: Tensor) -> Tensor:
        """The product with the weights, shape (..., out features)."""
        if torch.is_grad_enabled() or not _is_for_onednn(self, input):
            return super().forward(input)
        return _onednn(input, self.weight, self.bias)


def product(layer: nn.Linear, input: Tensor, gelu: bool = False, add: Tensor | None = None) -> Tensor:
    """A linear layer and what follows it, as one operation where oneDNN computes it. Gives no gradient.

    Args:
        layer: The layer; where it is a :class:`OneDnnLinear`, oneDNN is used.
        input: Shape (..., in features).
        gelu: Whether the exact GELU is applied.
        add: Is added to the product, shape (..., out features); not together with ``gelu``.

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
    """The number of rows to compute when ``rows`` are needed.

    oneDNN compiles a kernel for every number of rows that it meets, which takes half a millisecond and 0.6 MB each,
    and keeps up to a thousand of them. So products come in few sizes: rows are added up to the next size, about 2 % of
    them in large products.

    Args:
        layer: The layer.
        rows: Number of rows needed, at least 0.

    Returns:
        At least ``rows``; exactly ``rows`` where oneDNN is not used.
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
    """Lets the linear layers of a model use oneDNN if that is faster here; weights, names and saving stay the same.

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
    except RuntimeError as problem:  # this build of torch has a oneDNN without the operation
        logger.debug("oneDNN is not used: %s", problem)
        return False
    logger.debug("oneDNN is %.2f times as fast as torch's default; largest difference %.1e", gain, error)
    return gain >= _LEAST_GAIN and error <= _LARGEST_ERROR


def _onednn(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    # The last argument says which GELU: "none" is the exact one, "tanh" an approximation.
    return torch.ops.mkldnn._linear_pointwise(
        input, weight, bias, activation, [], "none" if activation == "gelu" else ""
    )
