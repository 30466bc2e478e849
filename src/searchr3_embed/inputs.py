"""What the embedder is given and what it gives back: texts, options and empty results."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from searchr3_embed.conversation import check_texts
from searchr3_embed.files import shorten

REASONING_OPTIONS = ("reason", "max_reasoning_tokens", "reasoning", "continue_reasoning")


def with_reasoning_options(stock: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a method the signature of the stock one plus the reasoning options, without repeating 15 arguments."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        signature = inspect.signature(stock)
        parameters = list(signature.parameters.values())
        extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in REASONING_OPTIONS]
        # The last parameter of the stock methods is **kwargs, before which keywords stand.
        vars(call)["__signature__"] = signature.replace(parameters=[*parameters[:-1], *extra, parameters[-1]])
        return call

    return decorate


def take_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """What is to be embedded, by whatever name, and the other arguments by place; it is taken out of ``kwargs``."""
    if args:
        return args[0], args[1:]
    for name in ("inputs", "sentences"):
        if name in kwargs:
            return kwargs.pop(name), ()
    raise TypeError("encode needs 'inputs': a text or a sequence of texts.")


def as_texts(inputs: Any) -> list[str]:
    """A text or a sequence of texts as a list, or an error that names what came instead."""
    if isinstance(inputs, str):
        return check_texts([inputs])
    if isinstance(inputs, bytes | bytearray | Mapping | set | frozenset) or not isinstance(inputs, Iterable):
        shown = shorten(repr(inputs), 80)
        raise TypeError(f"inputs must be a str or a sequence of str, got {shown} of type {type(inputs).__name__}.")
    return check_texts(inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs))


def empty_result(options: Mapping[str, Any], dimension: int) -> Any:
    """What an empty list of texts embeds to: no rows, but the right number of columns.

    Args:
        options: Arguments of ``SentenceTransformer.encode``.
        dimension: Of the vectors, before ``options`` cuts them.
    """
    columns = options.get("truncate_dim") or dimension
    precision = options.get("precision", "float32")
    if precision in ("binary", "ubinary"):
        columns //= 8
    dtype = {"float32": np.float32, "int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}[
        precision
    ]
    empty = np.empty((0, columns), dtype=dtype)
    if options.get("convert_to_tensor"):
        return torch.from_numpy(empty)
    return empty if options.get("convert_to_numpy", True) else []
