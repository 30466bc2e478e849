"""The second kind of checkpoint: an encoder that nobody touches, and a thinker that moves the question's vector."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import Tensor

from searchr3_embed import encoder_identity
from searchr3_embed.checkpoint import new_thinker
from searchr3_embed.checkpoint import thinker as thinker_folder
from searchr3_embed.checkpoint.load import check_weights
from searchr3_embed.conversation import OnTruncate, report_truncation
from searchr3_embed.engine import decode, encode
from searchr3_embed.engine.cpu.kernels import fastest_products
from searchr3_embed.engine.interpreter_exit import computing
from searchr3_embed.engine.one_pass import OnePassThinker
from searchr3_embed.given_reasoning import given_in
from searchr3_embed.kinds.behind_pooling import check_finite, finish
from searchr3_embed.query_route import ROUTE, QueryRoute
from searchr3_embed.question_side import ENCODER, QuestionSide, nothing_to_add

logger = logging.getLogger(__name__)

Progress = Callable[[int], object]
# Texts that are tokenised at once.
_TOKENISED_AT_ONCE = 512
# A text, and more tokens than encoders put around it.
_SHORT, _LONGEST_TEMPLATE = "a", 64


def load(
    encoder: SentenceTransformer,
    folder: Path,
    name: str,
    on_truncate: OnTruncate,
    model_kwargs: Mapping[str, Any] | None,
) -> tuple[str, QuestionSide]:
    """The name that a checkpoint gives its encoder, and its thinker.

    Args:
        encoder: The encoder of the checkpoint, loaded already.
        folder: The checkpoint's folder.
        name: What the caller asked for, for messages.
        on_truncate: What happens when a question is longer than the thinker reads.
        model_kwargs: For a thinker of its own, passed to ``from_pretrained``.

    Raises:
        CheckpointError: The thinker can't be loaded, or does not fit the encoder.
    """
    settings = thinker_folder.read_settings(folder, name)
    check_weights(encoder, name, folder)
    side = (
        thinker_folder.load_query_route(encoder, name)
        if settings.base == ROUTE
        else thinker_folder.load_question_side(
            folder,
            transformer(encoder),
            encoder.get_embedding_dimension() or 0,
            name=name,
            on_truncate=on_truncate,
            model_kwargs=model_kwargs,
        )
    )
    if not encoder_identity.same_space(probe(side.pipeline(encoder)), settings.probes):
        logger.warning(
            "The encoder in %s is not the one that its thinker was made for (%s): its vectors of the probe texts "
            "differ. Questions are moved as they were for the other one.",
            name,
            settings.encoder,
        )
    return settings.encoder, side


def join(
    encoder: str | os.PathLike[str],
    thinker: str | os.PathLike[str] | None,
    prompts: Mapping[str, Any] | None,
    on_truncate: OnTruncate,
    **kwargs: Any,
) -> tuple[SentenceTransformer, str, QuestionSide]:
    """An encoder, its name, and a thinker that has learned nothing yet.

    Args:
        encoder: A sentence-transformers model.
        thinker: A causal language model, or None for a thinker that shares the encoder's layers.
        prompts: For a language model, fields of ``Prompts``.
        on_truncate: As in ``ReasoningEmbedder``.
        **kwargs: Arguments of ``SentenceTransformer``.

    Raises:
        CheckpointError: The encoder or the thinker can't be found or used.
        ValueError: An argument is not accepted, or the encoder's layers can't be shared.
    """
    if thinker is None and prompts is not None:
        raise ValueError("prompts are for a language model as the thinker; one that shares layers has its own.")
    pipeline = new_thinker.load_encoder(encoder, **kwargs)
    path = Path(encoder)
    name = path.resolve().name if path.is_dir() else os.fspath(encoder)
    dimension = pipeline.get_embedding_dimension() or 0
    if thinker is not None:
        side = new_thinker.language_model(
            thinker, dimension, prompts=prompts, device=pipeline.device, on_truncate=on_truncate
        )
        return pipeline, name, side
    network = transformer(pipeline)
    if network is None:
        raise ValueError(
            f"{os.fspath(encoder)!r} has no layers to share: name a causal language model as the thinker."
        )
    length = pipeline.max_seq_length or network.config.max_position_embeddings
    return pipeline, name, new_thinker.sharing_layers(network, pipeline.tokenizer, dimension, length)


@computing()
def embed(
    encoder: SentenceTransformer,
    texts: Sequence[str],
    prompt: str,
    batch_size: int,
    progress: Progress,
    *,
    on_truncate: OnTruncate = "ignore",
    task: str | None = None,
) -> Tensor:
    """The encoder's vectors, as its pipeline gives them.

    A plain BERT with mean or CLS pooling on a CPU is computed by ``engine.encode``, equal up to rounding; every other
    encoder by sentence-transformers.

    Args:
        encoder: The encoder.
        texts: At least one.
        prompt: The encoder's, put before each text.
        batch_size: Most texts at once.
        progress: Called with the number of texts done since the last call.
        on_truncate: What happens when a text is longer than the encoder reads.
        task: ``"query"``, ``"document"`` or None, for encoders that tell them apart.

    Returns:
        Shape (texts, dimension).
    """
    pooling = _fast_pooling(encoder)
    if pooling is not None:
        turns = token_ids(encoder, texts, prompt, task)
        _report_cut(encoder, texts, prompt, on_truncate, turns)
        with fastest_products():
            states = encode.encode(
                cast(Any, transformer(encoder)), turns, pooling, batch_size=batch_size, progress=progress
            )
        return check_finite(finish(encoder, states), texts)
    _report_cut(encoder, texts, prompt, on_truncate)
    # Named by its class: the embedder, which is an encoder too, replaces it by the engine.
    vectors: Any = SentenceTransformer._inference(
        encoder,
        list(texts),
        prompt=prompt or None,
        batch_size=batch_size,
        show_progress_bar=False,
        output_value="sentence_embedding",
        save_to_cpu=False,
        normalize_embeddings=False,
        truncate_dim=None,
        **({"task": task} if task else {}),
    )
    progress(len(texts))
    return check_finite(cast(Tensor, vectors), texts)


@computing()
def think(
    encoder: SentenceTransformer,
    side: QuestionSide,
    texts: Sequence[str],
    prompt: str,
    batch_size: int,
    max_reasoning_tokens: int | None,
    progress: Progress,
    *,
    on_truncate: OnTruncate = "ignore",
    task: str | None = "query",
    continue_reasoning: bool = False,
    on_token: Callable[[int, int], object] | None = None,
) -> tuple[Tensor, list[list[int]], list[decode.Generation]]:
    """The questions' vectors after thinking, and for each the thinker's prompt as token ids and what stands behind it.

    Where the thinker works on the encoder's own pass, and both read the same tokens, that pass gives the encoder's
    vector too; else the encoder reads the question by itself.
    """
    if isinstance(side, QueryRoute):
        side.conversation.check_budget(max_reasoning_tokens)
        route = {"on_truncate": on_truncate, "task": task}
        moved = embed(side.questions, texts, prompt, batch_size, progress, **cast(Any, route))
        return moved, [[] for _ in texts], side.silence(len(texts))
    pooling = _fast_pooling(encoder)
    read = token_ids(encoder, texts, prompt, task) if pooling is not None else None
    _report_cut(encoder, texts, prompt, on_truncate, read)
    vectors_of = functools.partial(finish, encoder) if pooling == "mean" else None
    engine_thinker = side.engine_thinker(transformer(encoder), vectors_of)
    with fastest_products():
        prompts, generations = side.think(
            engine_thinker,
            texts,
            max_reasoning_tokens,
            given=given_in(texts),
            continue_reasoning=continue_reasoning,
            batch_size=batch_size,
            progress=progress,
            on_token=on_token,
        )
    pooled: dict[tuple[int, ...], Tensor] = {}
    # Where P is zero, the vector is the encoder's to the bit, so it is computed as the encoder's is.
    if side.moves and pooling == "mean" and isinstance(engine_thinker, OnePassThinker):
        pooled = engine_thinker.pooled
    shared = [tuple(ids) in pooled for ids in read] if read is not None else [False] * len(texts)
    vectors = torch.empty(len(texts), side.projection.shape[0], device=encoder.device)
    together = [row for row, known in enumerate(shared) if known]
    apart = [row for row, known in enumerate(shared) if not known]
    if together and read is not None:
        vectors[together] = finish(encoder, torch.stack([pooled[tuple(read[row])] for row in together])).float()
    if apart:
        alone = embed(encoder, [texts[row] for row in apart], prompt, batch_size, lambda _: None, task=task)
        vectors[apart] = alone.float()
    if side.moves:
        vectors = side.moved(vectors, generations, normalises(encoder))
    return check_finite(vectors, texts), prompts, generations


def probe(encoder: SentenceTransformer) -> Any:
    """The encoder's vectors of the probe texts, a float32 array of shape (probes, dimension)."""
    texts = encoder_identity.PROBES
    with torch.inference_mode():
        encoder.eval()
        return embed(encoder, texts, "", len(texts), lambda _: None).float().cpu().numpy()


def transformer(encoder: SentenceTransformer) -> Any:
    """The network of the encoder, a ``PreTrainedModel``; None where its first module is of another kind."""
    return getattr(encoder[0], "auto_model", None)


def normalises(encoder: SentenceTransformer) -> bool:
    """Whether the encoder's pipeline ends by bringing vectors to length 1."""
    return isinstance(list(encoder.children())[-1], Normalize)


def set_max_length(encoder: SentenceTransformer, side: QuestionSide, value: int) -> None:
    """Sets how many tokens the encoder reads; a thinker that shares its layers reads as many.

    Raises:
        ValueError: The encoder has no so many positions.
    """
    positions = getattr(getattr(transformer(encoder), "config", None), "max_position_embeddings", None)
    if type(value) is not int or value < 1 or (positions is not None and value > positions):
        most = f" to {positions} (the encoder's positions)" if positions is not None else ""
        raise ValueError(f"max_seq_length must be an integer from 1{most}, got {value!r}.")
    if side.base == ENCODER:
        side.conversation.max_length = thinker_folder.question_length(value, side.conversation.position_limit)
        side.tokenizer.model_max_length = value
    cast(Transformer, encoder[0]).max_seq_length = value


def token_ids(encoder: SentenceTransformer, texts: Sequence[str], prompt: str, task: str | None) -> list[list[int]]:
    """What the encoder reads of each text: its own tokenizer, cut as the stock class cuts."""
    rows: list[list[int]] = []
    for start in range(0, len(texts), _TOKENISED_AT_ONCE):
        part: Any = list(texts[start : start + _TOKENISED_AT_ONCE])
        features = encoder.preprocess(part, prompt=prompt or None, **({"task": task} if task else {}))
        pairs = zip(features["input_ids"].tolist(), features["attention_mask"].tolist(), strict=True)
        rows += [[token for token, real in zip(ids, mask, strict=True) if real] for ids, mask in pairs]
    return rows


def _fast_pooling(encoder: SentenceTransformer) -> encode.PoolingMode | None:
    """How the encoder pools, if the engine can compute it; None if sentence-transformers must."""
    modules: list[Any] = list(encoder.children())
    if [type(module) for module in modules[:2]] != [Transformer, Pooling] or encoder._compiled_call_impl is not None:
        return None
    first, pooling = modules[:2]
    mode = pooling.pooling_mode
    mode = mode[0] if isinstance(mode, list | tuple) and len(mode) == 1 else mode
    model = first.auto_model
    if mode not in ("mean", "cls") or not pooling.include_prompt or not encode.fits(model):
        return None
    return mode


def _report_cut(
    encoder: SentenceTransformer,
    texts: Sequence[str],
    prompt: str,
    on_truncate: OnTruncate,
    read: Sequence[Sequence[int]] | None = None,
) -> None:
    """Says, as ``on_truncate`` wishes, which texts are longer than the encoder reads.

    Only texts that may be too long are counted: those that fill what is read, or, where that isn't known, those with
    so many bytes.
    """
    tokenizer, most = getattr(encoder, "tokenizer", None), encoder.max_seq_length
    if on_truncate == "ignore" or not callable(tokenizer) or not most:
        return
    if read is not None:
        long = [row for row, ids in enumerate(read) if len(ids) >= most]
    else:
        long = [row for row, text in enumerate(texts) if len((prompt + text).encode()) >= most - _LONGEST_TEMPLATE]
    lengths = [0] * len(texts)
    if not long:
        return
    # What the encoder puts around a text beyond what its tokenizer does: a chat template.
    around = len(token_ids(encoder, [_SHORT], "", None)[0]) - len(tokenizer(_SHORT)["input_ids"])
    for start in range(0, len(long), _TOKENISED_AT_ONCE):
        part = long[start : start + _TOKENISED_AT_ONCE]
        counted = tokenizer([prompt + texts[row] for row in part], truncation=False, verbose=False)["input_ids"]
        for row, ids in zip(part, counted, strict=True):
            lengths[row] = len(ids) + around
    report_truncation(lengths, most, on_truncate)


def finish_reason(generation: decode.Generation) -> str:
    """Why a reasoning ended, see :class:`searchr3_embed.reasoning_trace.Reasoning`."""
    if nothing_to_add(generation):
        return "nothing_to_add"
    if generation.read_only:
        return "given"
    return "embed_token" if generation.finished else "length"
