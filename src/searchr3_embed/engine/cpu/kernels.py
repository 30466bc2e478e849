"""Faster matrix products on processors for which torch's default library has no wide kernels.

torch multiplies float32 matrices with MKL. On some processors that are not Intel's, MKL uses AVX2 although they have
AVX-512; oneDNN, which comes with torch too, uses AVX-512 there and takes half the time. Where both use it, oneDNN is
still a tenth faster on many rows, because it computes an activation or a sum within the product, and more than that on
few rows. Which one is faster is measured once per process and number of rows.

A model's layers stay as they are: the engine's own passes choose for every product by its number of rows, within
:func:`fastest_products`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import math
from collections.abc import Callable, Iterator

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
# Numbers of rows at which the ways to multiply are compared; more rows are as the last.
_MEASURED_ROWS = (1, 2, 4, 8, 16, 32, 64, 256)
_fastest: contextvars.ContextVar[bool] = contextvars.ContextVar("fastest", default=False)


def product(layer: nn.Linear, input: Tensor, gelu: bool = False, add: Tensor | None = None) -> Tensor:
    """A linear layer and what follows it, as one operation where oneDNN computes it. Gives no gradient.

    Args:
        layer: The layer; within :func:`fastest_products`, what is fastest here for so many rows is used.
        input: Shape (..., in features).
        gelu: Whether the exact GELU is applied.
        add: Is added to the product, shape (..., out features); not together with ``gelu``.

    Returns:
        Shape (..., out features).
    """
    way = _way(layer, input, math.prod(input.shape[:-1]))
    if way is not None:
        return way(input, layer.weight, layer.bias, gelu, add)
    return _stock(input, layer.weight, layer.bias, gelu, add)


def rows_computed(layer: nn.Linear, rows: int) -> int:
    """The number of rows to compute when ``rows`` are needed.

    Args:
        layer: The layer.
        rows: Number of rows needed, at least 0.

    Returns:
        At least ``rows``; exactly ``rows`` where oneDNN is not used.
    """
    return few_sizes(rows) if _way(layer, layer.weight, rows) is _fused else rows


def few_sizes(rows: int) -> int:
    """The number of rows to give oneDNN when ``rows`` are needed, at least as many.

    oneDNN compiles a kernel for every number of rows that it meets, which takes half a millisecond and 0.6 MB each,
    and keeps up to a thousand of them. So products come in few sizes: rows are added up to the next size, about 2 % of
    them in large products.
    """
    step = next(step for most, step in _STEPS if rows <= most)
    return -(-rows // step) * step


@contextlib.contextmanager
def fastest_products() -> Iterator[None]:
    """Within it, :func:`product` computes plain linear layers the way that is fastest here for the number of rows.

    The layers themselves stay as they are. A run of training that must give the same bits after it was resumed does
    without, for what is fastest is measured in every process anew.
    """
    token = _fastest.set(True)
    try:
        yield
    finally:
        _fastest.reset(token)


def _way(layer: nn.Linear, input: Tensor, rows: int) -> _Way | None:
    """How to compute a product, if not by torch's default."""
    if not _fastest.get() or not rows or layer.bias is None or not _is_for_onednn(layer, input):
        return None
    return _fastest_way(next((most for most in _MEASURED_ROWS if rows <= most), _MEASURED_ROWS[-1]))


@functools.cache
def _fastest_way(rows: int) -> _Way | None:
    """The fastest way to compute a layer's products for so many rows, None for torch's default; measured."""
    generator = torch.Generator().manual_seed(0)
    narrow, wide = (torch.randn(rows, n, generator=generator) for n in (384, 1536))
    up, down = (torch.randn(shape, generator=generator) for shape in ((1536, 384), (384, 1536)))
    biases = torch.randn(1536, generator=generator), torch.randn(384, generator=generator)

    def call(way: _Way) -> Callable[[], Tensor]:
        return lambda: way(narrow, up, biases[0], True, None) + way(wide, down, biases[1], False, narrow).sum()

    best, least = None, math.inf
    with torch.inference_mode():
        expected = call(_stock)()
        least = least_seconds(call(_stock)) / _LEAST_GAIN
        for way in (_turned, _fused):
            try:
                error = float(((call(way)() - expected).abs() / expected.abs().clamp(min=1)).max())
                seconds = least_seconds(call(way))
            except (RuntimeError, AttributeError) as problem:  # this build of torch has no oneDNN, or another one
                logger.debug("%s is not used: %s", way.__name__, problem)
                continue
            if seconds < least and error <= _LARGEST_ERROR:
                best, least = way, seconds
    logger.debug("products of %d rows: %s", rows, best.__name__ if best else "torch's default")
    return best


_Way = Callable[[Tensor, Tensor, Tensor, bool, Tensor | None], Tensor]


def _stock(input: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, add: Tensor | None) -> Tensor:
    output = F.linear(input, weight, bias)
    if add is not None:
        return output + add
    return F.gelu(output) if gelu else output


def _turned(input: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, add: Tensor | None) -> Tensor:
    """The product of the weights and the turned rows, turned back: for a few rows, MKL computes that faster."""
    rows = input.reshape(-1, input.shape[-1])
    output = (weight @ rows.t()).t().contiguous().view(*input.shape[:-1], len(weight))
    if bias is not None:
        output += bias
    if add is not None:
        output += add
    return F.gelu(output) if gelu else output


def _fused(input: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, add: Tensor | None) -> Tensor:
    """By oneDNN, which computes what follows the product along with it."""
    if add is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(input, add, weight, bias, "add")
    # The last argument says which GELU: "none" is the exact one, "tanh" an approximation.
    activation, which = ("gelu", "none") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, activation, [], which)


def _is_for_onednn(layer: nn.Linear, input: Tensor) -> bool:
    return (
        input.device.type == "cpu"
        and input.dtype == torch.float32
        and layer.weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )
