"""ReasoningEmbedder: the public class, a SentenceTransformer that can think before it embeds."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from sentence_transformers.util import get_device_name, truncate_embeddings
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from searchr3_embed.async_batching import Coalescer
from searchr3_embed.checkpoint import load, locate, saving
from searchr3_embed.conversation import Conversation, OnTruncate, check_texts
from searchr3_embed.engine import decode, forward
from searchr3_embed.engine.cpu import kernels
from searchr3_embed.files import shorten
from searchr3_embed.models.causal_transformer import CausalTransformer
from searchr3_embed.reasoning_trace import Reasoning

_REASONING_OPTIONS = ("reason", "max_reasoning_tokens")
# Async calls that wait together are computed in batches of so many rows, unless they say otherwise: they are what a
# server has at hand, and none of them chose the 32 rows that are the default of a call with many texts.
_ROWS_OF_CALLS = 64

if hasattr(os, "register_at_fork"):
    # A forked child has the model but not OpenMP's threads, and would wait for them forever.
    os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


def _with_reasoning_options(stock: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a method the signature of the stock one plus the reasoning options, without repeating 15 arguments."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        signature = inspect.signature(stock)
        parameters = list(signature.parameters.values())
        extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in _REASONING_OPTIONS]
        # The last parameter of the stock methods is **kwargs, before which keywords stand.
        vars(call)["__signature__"] = signature.replace(parameters=[*parameters[:-1], *extra, parameters[-1]])
        return call

    return decorate


class ReasoningEmbedder(SentenceTransformer):
    """A SentenceTransformer whose queries can think before they are embedded.

    ``encode_query`` lets the model write a short reasoning and takes the hidden state at the token that ends it;
    ``encode_document`` and ``encode`` take a fixed answer and cost one forward pass. All three accept the
    sentence-transformers arguments and, in addition, ``reason`` (bool) and ``max_reasoning_tokens`` (int).
    Embeddings have length 1.

    Args:
        model_name_or_path: ``"searchr3"`` (packaged weights, works offline), ``"searchr3-small"`` or
            ``"searchr3-large"`` (released weights on the hub), a folder, or a hub id.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ...; None takes the best there is.
        system_prompts: System prompts ``{"direct": ..., "reasoning": ...}`` for a released checkpoint without
            ``example.py``, or to replace a checkpoint's own.
        max_reasoning_tokens: Default budget of generated tokens per text; None takes the checkpoint's.
        on_truncate: What happens when a text is longer than the model reads: ``"warn"``, ``"error"`` or ``"ignore"``.
        **kwargs: Further arguments of ``SentenceTransformer`` (``prompts``, ``truncate_dim``, ``cache_folder``,
            ``revision``, ``token``, ``local_files_only``, ``model_kwargs``, ``similarity_fn_name`` ...).

    Raises:
        CheckpointError: The model can't be found, is damaged, or was never trained to embed.
        ValueError: An argument is not accepted.
    """

    conversation: Conversation

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] = locate.PACKAGED,
        *,
        device: str | None = None,
        system_prompts: Mapping[str, str] | None = None,
        max_reasoning_tokens: int | None = None,
        on_truncate: OnTruncate = "warn",
        **kwargs: Any,
    ) -> None:
        for name in ("modules", "backend"):
            if kwargs.pop(name, None) not in (None, "torch"):
                raise ValueError(f"ReasoningEmbedder does not take {name!r}: it builds its own modules on torch.")
        if model_name_or_path is None:
            raise ValueError("model_name_or_path must be an alias, a folder or a hub id, got None.")
        find = {name: kwargs.get(name) for name in ("revision", "token", "cache_folder")}
        find["cache_folder"] = find["cache_folder"] or os.getenv("SENTENCE_TRANSFORMERS_HOME")
        folder = locate.find(model_name_or_path, local_files_only=bool(kwargs.pop("local_files_only", False)), **find)
        for name in ("revision", "token", "cache_folder"):
            kwargs.pop(name, None)
        # Read by _load_modules, which the base class calls when it is ready for it.
        self._load_options: dict[str, Any] = {
            "name": os.fspath(model_name_or_path),
            "system_prompts": system_prompts,
            "on_truncate": on_truncate,
            "device": device,
        }
        self._coalescer: Coalescer | None = None
        super().__init__(str(folder), device=device, local_files_only=True, **kwargs)
        del self._load_options
        if max_reasoning_tokens is not None:
            self.conversation.default_max_reasoning_tokens = self.conversation.check_budget(max_reasoning_tokens)

    def _load_modules(
        self, model_name_or_path: str, *args: Any, **kwargs: Any
    ) -> tuple[OrderedDict[str, nn.Module], dict]:
        """Builds the stock modules (Transformer, last-token Pooling, Normalize) over one causal language model."""
        folder = Path(model_name_or_path)
        for name in ("processor_kwargs", "config_kwargs"):
            if kwargs.get(name):
                raise ValueError(f"ReasoningEmbedder does not take {name!r}: the checkpoint's own are used.")
        settings = folder / "config_sentence_transformers.json"
        if settings.is_file():
            self._parse_model_config(json.loads(settings.read_text(encoding="utf-8")))
        card = folder / "README.md"
        if card.is_file():
            vars(self)["_model_card_text"] = card.read_text(encoding="utf-8")
        options = self._load_options
        checkpoint = load.load(
            folder,
            name=options["name"],
            device=options["device"] or get_device_name(),
            system_prompts=options["system_prompts"],
            on_truncate=options["on_truncate"],
            model_kwargs=kwargs.get("model_kwargs"),
        )
        self.conversation = checkpoint.conversation
        if checkpoint.model.device.type == "cpu":
            kernels.speed_up(checkpoint.model)
        tokenizer = checkpoint.conversation.direct_turn_tokenizer(checkpoint.tokenizer)
        transformer = CausalTransformer(checkpoint.model, str(folder), tokenizer)
        modules: list[nn.Module] = [
            transformer,
            Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken"),
            Normalize(),
        ]
        return OrderedDict((str(index), module) for index, module in enumerate(modules)), {}

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The causal language model with its head; its backbone is the one that embeds."""
        return cast(PreTrainedModel, self[0].causal_lm)

    @property
    def max_seq_length(self) -> int:
        """Longest direct turn in tokens, template included; longer texts are cut (see ``on_truncate``)."""
        return self.conversation.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.conversation.max_length = value
        cast(Transformer, self[0]).max_seq_length = value

    def get_model_kwargs(self) -> list[str]:
        """Names of the arguments that ``encode`` takes beyond those of sentence-transformers."""
        return list(_REASONING_OPTIONS)

    @_with_reasoning_options(SentenceTransformer.encode)
    def encode(
        self, *args: Any, reason: bool | None = None, max_reasoning_tokens: int | None = None, **kwargs: Any
    ) -> Any:
        """Embeds texts; does not reason unless ``reason=True``.

        Takes all arguments of ``SentenceTransformer.encode`` (``prompt_name``, ``batch_size``, ``show_progress_bar``,
        ``precision``, ``truncate_dim``, ``normalize_embeddings``, ``convert_to_tensor``, ``device``, ``pool`` ...).

        Args:
            *args: The first one, ``inputs``, is a text or a sequence of texts.
            reason: Whether to think before embedding; None means no.
            max_reasoning_tokens: Budget of generated tokens per text; 0 embeds after an empty reasoning.
            **kwargs: Arguments of the stock method, by name.

        Returns:
            Float32 array of shape (texts, dimension), or (dimension,) for a single text; tensor or list where asked.

        Raises:
            TypeError: An item is not a text, or the budget not an integer.
            ValueError: A text, the budget or another argument is not accepted; the message names value and limits.
        """
        if args:
            inputs, args = args[0], args[1:]
        elif "inputs" in kwargs or "sentences" in kwargs:
            inputs = kwargs.pop("inputs") if "inputs" in kwargs else kwargs.pop("sentences")
        else:
            raise TypeError("encode needs 'inputs': a text or a sequence of texts.")
        if reason is not None and not isinstance(reason, bool):
            raise TypeError(f"reason must be True, False or None, got {reason!r}.")
        self.conversation.check_budget(max_reasoning_tokens)
        texts = _as_texts(inputs)
        options = inspect.signature(SentenceTransformer.encode).bind(self, texts, *args, **kwargs).arguments
        single = isinstance(inputs, str)
        embeddings = super().encode(texts, *args, reason=reason, max_reasoning_tokens=max_reasoning_tokens, **kwargs)
        if not texts:
            return self._empty(options)
        return embeddings[0] if single else embeddings

    @_with_reasoning_options(SentenceTransformer.encode_query)
    def encode_query(self, *args: Any, reason: bool | None = None, **kwargs: Any) -> Any:
        """Embeds queries; thinks first unless ``reason=False``. Arguments and results as in ``encode``."""
        return super().encode_query(*args, reason=True if reason is None else reason, **kwargs)

    @_with_reasoning_options(SentenceTransformer.encode_document)
    def encode_document(self, *args: Any, reason: bool | None = None, **kwargs: Any) -> Any:
        """Embeds documents in one forward pass each; thinks only if ``reason=True``. Else as ``encode``."""
        return super().encode_document(*args, reason=False if reason is None else reason, **kwargs)

    async def aencode_query(self, inputs: str | Sequence[str], **kwargs: Any) -> Any:
        """As ``encode_query``, without blocking the event loop.

        Concurrent calls with the same options run together, 64 rows at once unless ``batch_size`` says otherwise.
        """
        return await self._encode_async("encode_query", inputs, kwargs)

    async def aencode_document(self, inputs: str | Sequence[str], **kwargs: Any) -> Any:
        """As ``encode_document``, without blocking the event loop.

        Concurrent calls with the same options run together, 64 rows at once unless ``batch_size`` says otherwise.
        """
        return await self._encode_async("encode_document", inputs, kwargs)

    @overload  # a str is a sequence of str, too: the first signature that fits is meant
    def reason(  # type: ignore[overload-overlap]
        self,
        texts: str,
        *,
        batch_size: int = ...,
        max_reasoning_tokens: int | None = ...,
        show_progress_bar: bool | None = ...,
    ) -> Reasoning: ...

    @overload
    def reason(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = ...,
        max_reasoning_tokens: int | None = ...,
        show_progress_bar: bool | None = ...,
    ) -> list[Reasoning]: ...

    def reason(
        self,
        texts: str | Sequence[str],
        *,
        batch_size: int = 32,
        max_reasoning_tokens: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> Reasoning | list[Reasoning]:
        """Thinks about texts and returns the trace with the embedding; ``encode_query`` gives the same embeddings.

        Args:
            texts: A text or a sequence of texts.
            batch_size: Rows computed at once.
            max_reasoning_tokens: Budget of generated tokens per text; None takes the default.
            show_progress_bar: Whether to show progress; None means no.

        Returns:
            One ``Reasoning``, or a list in the order of ``texts``.

        Raises:
            TypeError: An item is not a text, or the budget not an integer.
            ValueError: A text or an argument is not accepted.
        """
        items = _as_texts(texts)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size <= 0:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}.")
        prompt = self._resolve_prompt(None, "query") or ""
        with torch.inference_mode():
            self.eval()
            prompts, generations = self._think(
                [prompt + item for item in items], batch_size, max_reasoning_tokens, bool(show_progress_bar)
            )
            embeddings = self._finish(torch.stack([g.state for g in generations])) if items else torch.empty(0)
        vectors = embeddings.float().cpu().numpy()
        results = [
            Reasoning(
                text=item,
                reasoning=self.conversation.decode(generation.ids),
                finish_reason="embed_token" if generation.finished else "length",
                prompt_tokens=len(ids),
                reasoning_tokens=len(generation.ids),
                reasoning_ids=generation.ids,
                embedding=vector,
            )
            for item, ids, generation, vector in zip(items, prompts, generations, vectors, strict=True)
        ]
        return results[0] if isinstance(texts, str) else results

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Writes a folder that the stock ``SentenceTransformer`` loads, direct mode, and this class loads whole."""
        with saving.whole_folder(path, self.conversation.prompts) as folder:
            super().save(str(folder), *args, **kwargs)

    def _inference(  # type: ignore[override] # the base class of the base class knows no keywords
        self,
        inputs: list[str],
        *,
        prompt: str | None,
        batch_size: int,
        show_progress_bar: bool,
        output_value: str | None,
        save_to_cpu: bool,
        normalize_embeddings: bool,
        truncate_dim: int | None,
        device: str | torch.device | None = None,
        reason: bool | None = None,
        max_reasoning_tokens: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Replaces the base class's batch loop by the engine; pool workers call it too."""
        kwargs.pop("task", None)
        if kwargs:
            raise ValueError(
                f"encode does not take {sorted(kwargs)}; beyond the stock ones it takes {_REASONING_OPTIONS}."
            )
        if output_value != "sentence_embedding":
            if reason:
                raise ValueError(f"output_value={output_value!r} is for direct embeddings only; pass reason=False.")
            return super()._inference(
                inputs,
                prompt=prompt,
                batch_size=batch_size,
                show_progress_bar=show_progress_bar,
                output_value=output_value,
                save_to_cpu=save_to_cpu,
                normalize_embeddings=normalize_embeddings,
                truncate_dim=truncate_dim,
                device=device,
            )
        self._resolve_inference_device(device)
        texts = [prompt + text for text in inputs] if prompt else inputs
        with torch.inference_mode():
            self.eval()
            if not texts:
                return torch.empty(0)
            if reason:
                _, generations = self._think(texts, batch_size, max_reasoning_tokens, show_progress_bar)
                states = torch.stack([generation.state for generation in generations])
            else:
                turns = self.conversation.direct_ids(texts)
                with tqdm(total=len(turns), desc="Embedding", disable=not show_progress_bar) as bar:
                    states = forward.embed(self.causal_lm, turns, batch_size=batch_size, progress=bar.update)
            embeddings = self._finish(states)
            if truncate_dim is not None:
                embeddings = truncate_embeddings(embeddings, truncate_dim)
            if normalize_embeddings:
                embeddings = nn.functional.normalize(embeddings, p=2, dim=1)
            return embeddings.cpu() if save_to_cpu else embeddings

    def _think(
        self, texts: list[str], batch_size: int, max_reasoning_tokens: int | None, show_progress_bar: bool
    ) -> tuple[list[list[int]], list[decode.Generation]]:
        budget = self.conversation.check_budget(max_reasoning_tokens)
        prompts = self.conversation.reasoning_ids(texts, budget)
        with tqdm(total=len(prompts), desc="Thinking", disable=not show_progress_bar) as bar:
            generations = decode.think(
                self.causal_lm,
                prompts,
                embed_token_id=self.conversation.embed_token_id,
                max_new_tokens=budget,
                stop_token_ids=decode.stop_token_ids(self.causal_lm),
                batch_size=batch_size,
                distinct=self.conversation.prompts.distinct_tokens,
                progress=bar.update,
            )
        return prompts, generations

    def _finish(self, states: Tensor) -> Tensor:
        """Sends hidden states through the modules behind the pooling: normalisation, and whatever was appended."""
        features = {"sentence_embedding": states}
        for module in list(self.children())[2:]:
            features = module(features)
        return features["sentence_embedding"]

    def _empty(self, options: Mapping[str, Any]) -> Any:
        """What an empty list of texts embeds to: no rows, but the right number of columns."""
        columns = options.get("truncate_dim") or self.truncate_dim or self.get_embedding_dimension() or 0
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

    async def _encode_async(self, method: str, inputs: str | Sequence[str], options: dict[str, Any]) -> Any:
        texts = _as_texts(inputs)
        if self._coalescer is None:
            self._coalescer = Coalescer(self._encode_merged)
        key = (method, tuple(sorted(options.items())))
        try:
            hash(key)
        except TypeError:
            raise TypeError(
                f"Async calls take only plain options (numbers, texts, True, False), got {options!r}."
            ) from None
        rows = await asyncio.wrap_future(self._coalescer.submit(key, texts))
        if isinstance(inputs, str):
            return rows[0]
        return rows

    def _encode_merged(self, key: tuple[str, tuple[tuple[str, Any], ...]], texts: list[str]) -> Any:
        method, options = key
        return getattr(self, method)(texts, **{"batch_size": _ROWS_OF_CALLS, **dict(options)})

    def __getstate__(self) -> dict[str, Any]:
        # Threads and locks neither copy nor travel to pool workers; a fresh worker starts on the first async call.
        return {**self.__dict__, "_coalescer": None}


def _as_texts(inputs: Any) -> list[str]:
    """A text or a sequence of texts as a list, or an error that names what came instead."""
    if isinstance(inputs, str):
        return check_texts([inputs])
    if isinstance(inputs, bytes | bytearray | Mapping | set | frozenset) or not isinstance(inputs, Iterable):
        shown = shorten(repr(inputs), 80)
        raise TypeError(f"inputs must be a str or a sequence of str, got {shown} of type {type(inputs).__name__}.")
    return check_texts(inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs))
