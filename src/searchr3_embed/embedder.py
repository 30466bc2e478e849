"""ReasoningEmbedder: the public class, a SentenceTransformer that can think before it embeds."""

from __future__ import annotations

import inspect
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from sentence_transformers.util import get_device_name, truncate_embeddings
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from searchr3_embed import encoder_identity
from searchr3_embed.async_embedding import AsyncEmbedding
from searchr3_embed.checkpoint import damage, load, locate, model_card, new_thinker, saving
from searchr3_embed.checkpoint import thinker as thinker_folder
from searchr3_embed.compiling import Compiling
from searchr3_embed.conversation import Conversation, OnTruncate
from searchr3_embed.engine.interpreter_exit import computing
from searchr3_embed.files import write_text
from searchr3_embed.given_reasoning import attach, given_in
from searchr3_embed.inputs import REASONING_OPTIONS, as_texts, empty_result, take_inputs, with_reasoning_options
from searchr3_embed.kinds import encoder_with_thinker, single_model
from searchr3_embed.question_side import ENCODER, QuestionSide
from searchr3_embed.reasoned_embedding import ReasonedEmbedding, check_flag


class ReasoningEmbedder(AsyncEmbedding, ReasonedEmbedding, Compiling, SentenceTransformer):
    """A SentenceTransformer whose queries can think before they are embedded.

    ``encode_query`` lets the model write a short reasoning and takes the hidden state at the token that ends it;
    ``encode_document`` and ``encode`` take a fixed answer and cost one forward pass. All three accept the
    sentence-transformers arguments and, in addition, ``reason`` (bool), ``max_reasoning_tokens`` (int), ``reasoning``
    (what was thought already) and ``continue_reasoning`` (bool).
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

    # Nothing in these is registered as a module: the base class would run it in ``forward`` and write it to disk.
    question_side: QuestionSide | None = None
    encoder_name: str = ""
    _conversation: Conversation | None = None
    _on_truncate: OnTruncate = "warn"

    @computing()
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
        load.check_on_truncate(on_truncate)
        folder = locate.find(model_name_or_path, **locate.take_options(kwargs))
        if thinker_folder.has_thinker(folder) and system_prompts is not None:
            raise ValueError("system_prompts are for single models; a thinker's are in its conversation.json.")
        # Read by _load_modules, which the base class calls when it is ready for it.
        self._load_options: dict[str, Any] = {
            "name": os.fspath(model_name_or_path),
            "system_prompts": system_prompts,
            "on_truncate": on_truncate,
            "device": device or get_device_name(),
        }
        self._on_truncate = on_truncate
        super().__init__(str(folder), device=device, local_files_only=True, **kwargs)
        options = vars(self).pop("_load_options")
        if thinker_folder.has_thinker(folder):
            damage.check_vocabulary(options["name"], folder, self.tokenizer, encoder_with_thinker.transformer(self))
            self.encoder_name, self.question_side = encoder_with_thinker.load(
                self, folder, options["name"], on_truncate, kwargs.get("model_kwargs")
            )
        if max_reasoning_tokens is not None:
            self.conversation.default_max_reasoning_tokens = self.conversation.check_budget(max_reasoning_tokens)

    def _load_modules(
        self, model_name_or_path: str, *args: Any, **kwargs: Any
    ) -> tuple[OrderedDict[str, nn.Module], dict]:
        """Builds the stock modules (Transformer, last-token Pooling, Normalize) over one causal language model."""
        folder = Path(model_name_or_path)
        if thinker_folder.has_thinker(folder):
            with new_thinker.telling_what_failed(self._load_options["name"], folder):
                return cast(Any, super()._load_modules(model_name_or_path, *args, **kwargs))
        for name in ("processor_kwargs", "config_kwargs"):
            if kwargs.get(name):
                raise ValueError(f"ReasoningEmbedder does not take {name!r}: the checkpoint's own are used.")
        checkpoint = load.load(folder, model_kwargs=kwargs.get("model_kwargs"), **self._load_options)
        if settings := load.stock_settings(folder, checkpoint.name):
            self._parse_model_config(settings)
        card = folder / "README.md"
        if card.is_file():
            vars(self)["_model_card_text"] = card.read_text(encoding="utf-8", errors="replace")
        self._conversation = checkpoint.conversation
        modules = single_model.modules(checkpoint)
        return OrderedDict((str(index), module) for index, module in enumerate(modules)), {}

    @classmethod
    def from_encoder(
        cls,
        encoder: str | os.PathLike[str],
        thinker: str | os.PathLike[str] | None = None,
        *,
        prompts: Mapping[str, Any] | None = None,
        max_reasoning_tokens: int | None = None,
        on_truncate: OnTruncate = "warn",
        **kwargs: Any,
    ) -> Self:
        """Joins an encoder and a thinker that know nothing of one another yet: every vector is the encoder's.

        Args:
            encoder: A sentence-transformers model, a folder or a hub id. It is not changed.
            thinker: A causal language model, a folder or a hub id; None makes one that shares the layers of the
                encoder, which must be a BERT.
            prompts: Fields of ``Prompts``, the words around a question, for a thinker that has none of its own.
            max_reasoning_tokens: Default budget; None takes the thinker's.
            on_truncate: As in the constructor.
            **kwargs: Arguments of ``SentenceTransformer`` for the encoder (``device``, ``trust_remote_code`` ...).

        Returns:
            An embedder with P zero, ready for training; ``save_pretrained`` writes it.

        Raises:
            CheckpointError: The encoder or the thinker can't be found or used.
            ValueError: An argument is not accepted.
        """
        load.check_on_truncate(on_truncate)
        embedder = cls.__new__(cls)
        pipeline, name, side = encoder_with_thinker.join(encoder, thinker, prompts, on_truncate, **kwargs)
        vars(embedder).update(vars(pipeline))
        embedder.encoder_name, embedder.question_side = name, side
        embedder._on_truncate = on_truncate
        # The encoder's card describes another model.
        vars(embedder)["_model_card_text"] = None
        if max_reasoning_tokens is not None:
            talk = embedder.conversation
            talk.default_max_reasoning_tokens = talk.check_budget(max_reasoning_tokens)
        return embedder

    @property
    def conversation(self) -> Conversation:
        """The turns: those of the single model, or the thinker's."""
        talk = self.question_side.conversation if self.question_side is not None else self._conversation
        assert talk is not None
        return talk

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The causal language model that writes, with its head; in a single model its backbone also embeds."""
        return self.question_side.model if self.question_side is not None else cast(PreTrainedModel, self[0].causal_lm)

    @property
    def on_truncate(self) -> OnTruncate:
        """What happens when a text is longer than what is read of it: ``"warn"``, ``"error"`` or ``"ignore"``."""
        return self._on_truncate

    @on_truncate.setter
    def on_truncate(self, value: OnTruncate) -> None:
        load.check_on_truncate(value)
        # A thinker that reads the encoder's own tokens stays silent: the encoder says what it cuts.
        if self.question_side is None or self.question_side.base != ENCODER:
            self.conversation.on_truncate = value
        self._on_truncate = value

    @property
    def max_seq_length(self) -> int:
        """Most tokens that are read of a text, template included; longer texts are cut (see ``on_truncate``).

        In a single model, of a direct turn; beside a thinker it is the encoder's.
        """
        # The base class asks while an encoder is loaded, before there is a thinker.
        talk = self._conversation
        return talk.max_length if talk is not None else cast(int, cast(Transformer, self[0]).max_seq_length)

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        if self.question_side is not None:
            encoder_with_thinker.set_max_length(self, self.question_side, value)
            return
        if self._conversation is not None:
            self._conversation.max_length = value
        cast(Transformer, self[0]).max_seq_length = value

    def get_model_kwargs(self) -> list[str]:
        """Names of the arguments that ``encode`` takes beyond those of sentence-transformers."""
        return list(REASONING_OPTIONS)

    @with_reasoning_options(SentenceTransformer.encode)
    def encode(
        self,
        *args: Any,
        reason: bool | None = None,
        max_reasoning_tokens: int | None = None,
        reasoning: Any = None,
        continue_reasoning: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Embeds texts; does not reason unless ``reason=True``.

        Takes all arguments of ``SentenceTransformer.encode`` (``prompt_name``, ``batch_size``, ``show_progress_bar``,
        ``precision``, ``truncate_dim``, ``normalize_embeddings``, ``convert_to_tensor``, ``device``, ``pool`` ...).

        Args:
            *args: The first one, ``inputs``, is a text or a sequence of texts.
            reason: Whether to think before embedding; None means no.
            max_reasoning_tokens: Budget of generated tokens per text; 0 embeds after an empty reasoning.
            reasoning: What was thought already, in place of words that the model writes: for each text a str, a
                ``Reasoning``, token ids, or None where it shall think itself. One forward pass, no decoding.
            continue_reasoning: Whether the model goes on after the given words; None means no.
            **kwargs: Arguments of the stock method, by name.

        Returns:
            Float32 array of shape (texts, dimension), or (dimension,) for a single text; tensor or list where asked.

        Raises:
            TypeError: An item is not a text, or the budget not an integer.
            ValueError: A text, the budget or another argument is not accepted; the message names value and limits.
        """
        inputs, args = take_inputs(args, kwargs)
        check_flag("reason", reason)
        check_flag("continue_reasoning", continue_reasoning)
        self.conversation.check_budget(max_reasoning_tokens)
        single = isinstance(inputs, str)
        texts = attach(as_texts(inputs), reasoning, single, self.conversation)
        if any(given_in(texts)):
            if reason is False:
                raise ValueError("reason=False leaves no place for the given reasoning; leave one of the two out.")
            reason = True
        options = inspect.signature(SentenceTransformer.encode).bind(self, texts, *args, **kwargs).arguments
        kwargs |= {"reason": reason, "max_reasoning_tokens": max_reasoning_tokens}
        embeddings = super().encode(texts, *args, continue_reasoning=continue_reasoning, **kwargs)
        if not texts:
            return empty_result(options, self.truncate_dim or self.get_embedding_dimension() or 0)
        return embeddings[0] if single else embeddings

    @with_reasoning_options(SentenceTransformer.encode_query)
    def encode_query(self, *args: Any, reason: bool | None = None, **kwargs: Any) -> Any:
        """Embeds queries; thinks first unless ``reason=False``. Arguments and results as in ``encode``.

        With ``reasoning=[...]`` the given words take the place of those that the model would write.
        """
        return super().encode_query(*args, reason=True if reason is None else reason, **kwargs)

    @with_reasoning_options(SentenceTransformer.encode_document)
    def encode_document(self, *args: Any, reason: bool | None = None, **kwargs: Any) -> Any:
        """Embeds documents in one forward pass each. A single model can think about them, with ``reason=True``."""
        if (reason or kwargs.get("reasoning") is not None) and self.question_side is not None:
            raise ValueError(
                "encode_document with reason=True or reasoning is not for an encoder with a thinker: documents keep "
                "the encoder's vectors, so that an index stays valid."
            )
        thinks = kwargs.get("reasoning") is not None if reason is None else reason
        return super().encode_document(*args, reason=thinks, **kwargs)

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Writes a folder that the stock ``SentenceTransformer`` loads, direct mode, and this class loads whole."""
        if self.question_side is None:
            with saving.whole_folder(path, self.conversation.prompts) as folder:
                super().save(str(folder), *args, **kwargs)
            return
        probes = self.probe().tolist()
        with saving.whole_encoder(path) as folder:
            super().save(str(folder), *args, **kwargs)
            thinker_folder.save_question_side(self.question_side, folder, encoder=self.encoder_name, probes=probes)

    def _create_model_card(self, path: str, model_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        # A card that came with the weights is kept by the base class, which knows nothing to say of thinking.
        super()._create_model_card(path, model_name, *args, **kwargs)
        if not self._model_card_text:
            encoder = self.encoder_name if self.question_side is not None else None
            name = self.model_card_data.model_id or model_name
            write_text(Path(path) / "README.md", model_card.render(name, encoder, self.get_embedding_dimension() or 0))

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
        continue_reasoning: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Replaces the base class's batch loop by the engine; pool workers call it too."""
        task = kwargs.pop("task", None)
        if kwargs:
            raise ValueError(
                f"encode does not take {sorted(kwargs)}; beyond the stock ones it takes {REASONING_OPTIONS}."
            )
        if output_value != "sentence_embedding":
            if reason:
                raise ValueError(f"output_value={output_value!r} is for direct embeddings only; pass reason=False.")
            stock: dict[str, Any] = {"prompt": prompt, "batch_size": batch_size, "output_value": output_value}
            stock |= {"show_progress_bar": show_progress_bar, "save_to_cpu": save_to_cpu, "device": device}
            stock |= {"normalize_embeddings": normalize_embeddings, "truncate_dim": truncate_dim}
            stock |= {"task": task} if self.question_side is not None and task else {}
            return super()._inference(inputs, **stock)
        self._resolve_inference_device(device)
        if not inputs:
            return torch.empty(0)
        reason = bool(reason) and (self.question_side is None or self.question_side.moves)
        label = "Thinking" if reason else "Embedding"
        with torch.inference_mode(), tqdm(total=len(inputs), desc=label, disable=not show_progress_bar) as bar:
            self.eval()
            if reason:
                budget, more = max_reasoning_tokens, bool(continue_reasoning)
                embeddings = self._think(inputs, prompt or "", batch_size, budget, bar.update, task, more)[0]
            else:
                embeddings = self._embed(inputs, prompt or "", batch_size, bar.update, task)
            if truncate_dim is not None:
                embeddings = truncate_embeddings(embeddings, truncate_dim)
            if normalize_embeddings:
                embeddings = nn.functional.normalize(embeddings, p=2, dim=1)
            return embeddings.cpu() if save_to_cpu else embeddings

    def _embed(
        self, texts: Sequence[str], prompt: str, batch_size: int, progress: Callable[[int], object], task: str | None
    ) -> Tensor:
        """The vectors without thinking, shape (texts, dimension)."""
        if self.question_side is None:
            return single_model.embed(self, self.conversation, texts, prompt, batch_size, progress)
        encoder, options = self.question_side.pipeline(self), {"on_truncate": self.on_truncate, "task": task}
        return encoder_with_thinker.embed(encoder, texts, prompt, batch_size, progress, **cast(Any, options))

    def probe(self) -> np.ndarray:
        """The encoder's vectors of the probe texts."""
        with torch.inference_mode():
            self.eval()
            texts = encoder_identity.PROBES
            return self._embed(texts, "", len(texts), lambda _: None, None).float().cpu().numpy()

    def check_index(self, texts: Sequence[str], vectors: Any, rows: int = 16) -> encoder_identity.IndexCheck:
        """Embeds a few rows of an index again, and says whether it was made by this encoder from these texts.

        Args:
            texts: The texts of the index, as they were embedded.
            vectors: Its vectors in the same order, shape (texts, dimension).
            rows: How many rows to embed again.

        Raises:
            ValueError: There is nothing to compare, or the numbers of texts and vectors differ.
        """
        name = self.encoder_name if self.question_side is not None else "this model"
        return encoder_identity.check_index(self.encode_document, name, texts, vectors, rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        # What ``to``, ``half``, ``cuda`` and the like call. P stays in float32.
        super()._apply(fn, *args, **kwargs)
        if self.question_side is not None:
            self.question_side.apply(fn)
        return self

    def train(self, mode: bool = True) -> Self:
        """Sets training or evaluation mode, of the thinker too."""
        super().train(mode)
        if self.question_side is not None:
            self.question_side.model.train(mode)
        return self
