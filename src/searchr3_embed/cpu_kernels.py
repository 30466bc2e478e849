"""Faster matrix products on processors for which torch's default library has no wide kernels.

torch multiplies float32 matrices with MKL, which uses AVX2 on processors that are not Intel's, even where they have
AVX-512. oneDNN, which torch also brings along, uses what there is: on such a machine it takes half the time. Which
one is faster is measured once per process.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor, nn

from searchr3_embed.timing import least_seconds

logger = logging.getLogger(__name__)

# For fewer rows (one query at a time) oneDNN gains nothing, unless the weights are so many that reading them decides.
_LEAST_ROWS, _LEAST_WEIGHTS = 4, 1 << 22
# The other library is taken for a gain that no noise explains; both compute the same, up to rounding.
_LEAST_GAIN = 1.3
_LARGEST_ERROR = 1e-4


class OneDnnLinear(nn.Linear):
    """A linear layer whose float32 products are computed by oneDNN where no gradient is needed."""

    def forward(self, input: Tensor) -> Tensor:
        """The product with the weights, shape (..., out features)."""
        if (
            input.device.type != "cpu"
            or input.dtype != torch.float32
            or self.weight.dtype != torch.float32
            or (input.numel() < _LEAST_ROWS * self.in_features and self.weight.numel() < _LEAST_WEIGHTS)
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(input)
        return _onednn(input, self.weight, self.bias)


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
    """Whether oneDNN beats torch's default by far on a float32 product of the usual size, with the same result."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(n, 384, generator=generator) for n in (256, 768))
    bias = torch.randn(768, generator=generator)
    try:
        with torch.inference_mode():
            stock, other = (
                functools.partial(product, rows, weight, bias) for product in (nn.functional.linear, _onednn)
            )
            error = float((stock() - other()).abs().max())
            gain = least_seconds(stock) / least_seconds(other)
    except RuntimeError as problem:  # a build of torch whose oneDNN lacks the operation
        logger.debug("oneDNN is not used: %s", problem)
        return False
    logger.debug("oneDNN is %.2f times as fast as torch's default; largest difference %.1e", gain, error)
    return gain >= _LEAST_GAIN and error <= _LARGEST_ERROR


def _onednn(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
