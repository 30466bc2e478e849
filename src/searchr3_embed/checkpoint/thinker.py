"""The folder ``thinker/`` beside an encoder, and ``searchr3.json``, which says how the two are joined.

folder/                  a plain sentence-transformers model, which the stock class loads
searchr3.json        the kind of checkpoint, the encoder's name and probe vectors, how a question is read
thinker/             never read by the stock class
projection.safetensors   P
conversation.json, tokenizer files
differences.safetensors  of a thinker that shares the encoder's weights, or
config.json, model.safetensors  of any other causal language model
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from searchr3_embed.checkpoint import SETTINGS_FILE, THINKER_FOLDER, CheckpointError, damage
from searchr3_embed.checkpoint.load import load
from searchr3_embed.conversation import Conversation, OnTruncate
from searchr3_embed.files import first_line, write_json
from searchr3_embed.models import one_pass_bert
from searchr3_embed.prompt_words import PROMPTS_FILE, Prompts
from searchr3_embed.query_route import ROUTE, QueryRoute
from searchr3_embed.question_side import ENCODER, Familiar, QuestionSide

PROJECTION_FILE = "projection.safetensors"
DIFFERENCES_FILE = "differences.safetensors"
KIND, ROUTES_KIND = "encoder-with-thinker", "encoder-with-query-route"
FORMAT = 1
_NEEDED_FILES = (PROMPTS_FILE, "tokenizer.json", "tokenizer_config.json")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What ``searchr3.json`` says.

    Attributes:
        encoder: Name of the encoder, for people and for indexes.
        base: ``"encoder"`` for a thinker that shares its weights, :data:`ROUTE` for questions with a route of their
            own, else the name of the thinker's language model.
        probes: The encoder's vectors of ``encoder_identity.PROBES``, as numbers.
    """

    encoder: str
    base: str
    probes: list[list[float]]


def has_thinker(folder: Path) -> bool:
    """Whether a checkpoint is an encoder with a thinker."""
    return (folder / SETTINGS_FILE).is_file()


def read_settings(folder: Path, name: str | None = None) -> Settings:
    """What ``searchr3.json`` of a checkpoint says.

    Raises:
        CheckpointError: It can't be read, is of another kind or of a later format.
    """
    path = folder / SETTINGS_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["kind"] not in (KIND, ROUTES_KIND) or fields["format"] > FORMAT:
            raise CheckpointError(
                f"{name or folder!r}: {SETTINGS_FILE} is of kind {fields['kind']!r}, format {fields['format']!r}; "
                f"this version reads {KIND!r} and {ROUTES_KIND!r} up to format {FORMAT}. Install a newer "
                "searchr3-embed."
            )
        probes = np.array(fields["probes"], dtype=np.float32)
        if probes.ndim != 2 or not probes.size:
            raise ValueError(f"the probe vectors have the shape {probes.shape}")
        base = ROUTE if fields["kind"] == ROUTES_KIND else str(fields["thinker"])
        return Settings(str(fields["encoder"]), base, probes.tolist())
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{name or folder!r}: {path} can't be read ({first_line(error)}).") from error


def load_question_side(
    folder: Path,
    encoder: PreTrainedModel | None,
    dimension: int,
    *,
    name: str | None = None,
    on_truncate: OnTruncate = "warn",
    model_kwargs: Mapping[str, Any] | None = None,
) -> QuestionSide:
    """Loads the thinker of a checkpoint.

    Args:
        folder: The checkpoint's folder.
        encoder: The transformer of its encoder, whose weights a thinker may share.
        dimension: Of the encoder's vectors.
        name: What the caller asked for, for messages.
        on_truncate: What happens when a question is longer than the thinker reads.
        model_kwargs: For a thinker of its own, passed to ``from_pretrained``.

    Raises:
        CheckpointError: A file is missing or damaged, or does not fit the encoder.
    """
    settings = read_settings(folder, name)
    inner = folder / THINKER_FOLDER
    shown = f"{name or folder}"
    # Without their settings, tokenizers load, and read texts of any length.
    missing = [file for file in _NEEDED_FILES if not (inner / file).is_file()]
    if missing:
        raise CheckpointError(f"{shown!r}: {inner} holds no {missing[0]}. {damage.AGAIN}")
    damage.check_tokenizer(shown, inner)
    if encoder is not None:
        damage.check_weights(shown, folder, encoder)
    if settings.base == ENCODER:
        differences = _tensors(inner / DIFFERENCES_FILE, shown)
        model, tokenizer, conversation = _sharing(inner, encoder, differences, shown)
    else:
        differences = None
        device = encoder.device if encoder is not None else "cpu"
        checkpoint = load(
            inner, name=f"{shown} (thinker)", device=device, on_truncate=on_truncate, model_kwargs=model_kwargs
        )
        model, tokenizer, conversation = checkpoint.model, checkpoint.tokenizer, checkpoint.conversation
    stored = _tensors(inner / PROJECTION_FILE, shown)
    projection = stored.get("projection")
    wanted = (dimension, model.config.hidden_size)
    if projection is None or tuple(projection.shape) != wanted:
        found = None if projection is None else tuple(projection.shape)
        raise CheckpointError(
            f"{shown!r}: the projection in {inner / PROJECTION_FILE} has the shape {found}; the encoder's vectors and "
            f"the thinker's states need {wanted}."
        )
    familiar = _familiar(stored, dimension, shown)
    projection = projection.float().to(model.device)
    return QuestionSide(model, tokenizer, conversation, projection, settings.base, differences, familiar)


def load_query_route(encoder: SentenceTransformer, name: str | None = None) -> QueryRoute:
    """The question side of a checkpoint whose encoder has routes.

    Raises:
        CheckpointError: It has none.
    """
    try:
        return QueryRoute(encoder)
    except ValueError as error:
        raise CheckpointError(f"{name!r}: {error} Download or copy the folder again.") from error


def save_question_side(
    side: QuestionSide,
    folder: Path,
    *,
    encoder: str,
    probes: list[list[float]],
) -> None:
    """Writes ``searchr3.json`` and ``thinker/`` beside an encoder that is in ``folder`` already.

    Args:
        side: What to write.
        folder: The checkpoint's folder.
        encoder: The encoder's name.
        probes: Its vectors of the probe texts.

    Raises:
        OSError: The folder can't be written.
    """
    settings: dict[str, Any] = {
        "kind": ROUTES_KIND if side.base == ROUTE else KIND,
        "format": FORMAT,
        "encoder": encoder,
        "thinker": side.base,
        "probes": [[round(value, 6) for value in vector] for vector in probes],
    }
    write_json(folder / SETTINGS_FILE, settings, indent=None)
    if side.base == ROUTE:  # the encoder's own files hold it
        return
    inner = folder / THINKER_FOLDER
    inner.mkdir(exist_ok=True)
    side.conversation.prompts.save(inner)
    side.tokenizer.save_pretrained(inner)
    if side.differences is not None:
        changed = {key: value.contiguous().cpu() for key, value in side.differences.items()}
        save_file(changed, inner / DIFFERENCES_FILE)
    else:
        side.model.save_pretrained(inner)
    stored = {"projection": side.projection.float().contiguous().cpu()}
    if side.familiar is not None:
        stored["familiar"] = side.familiar.centres.half().contiguous().cpu()
        stored["familiar_cosines"] = torch.tensor([side.familiar.foreign, side.familiar.known], dtype=torch.float64)
    save_file(stored, inner / PROJECTION_FILE)


def _familiar(stored: Mapping[str, Tensor], dimension: int, name: str) -> Familiar | None:
    """Where the thinker moves vectors, if that is stored."""
    centres, cosines = stored.get("familiar"), stored.get("familiar_cosines")
    if centres is None and cosines is None:
        return None
    if centres is None or cosines is None or centres.ndim != 2 or centres.shape[1] != dimension or len(cosines) != 2:
        raise CheckpointError(
            f"{name!r}: {PROJECTION_FILE} holds centres of familiar questions that do not fit vectors of {dimension} "
            f"dimensions. {damage.AGAIN}"
        )
    return Familiar(F.normalize(centres.float(), dim=-1), *cosines.tolist())


def _sharing(
    inner: Path,
    encoder: PreTrainedModel | None,
    differences: Mapping[str, Tensor],
    name: str,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Conversation]:
    """A thinker out of the encoder's weights and the stored differences."""
    if encoder is None:
        raise CheckpointError(f"{name!r}: the thinker shares the weights of its encoder, which is no transformer.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(inner)  # a folder here  # nosec B615
        positions = encoder.config.max_position_embeddings
        conversation = Conversation(
            tokenizer,
            Prompts.load(inner),
            max_length=question_length(tokenizer.model_max_length, positions),
            position_limit=positions,
            on_truncate="ignore",  # the encoder reads the same tokens and says what it cuts
        )
    except Exception as error:  # transformers and tokenizers raise many kinds for a damaged file
        reason = damage.find_in_thinker(inner) or first_line(error)
        raise CheckpointError(f"{name!r}: the thinker in {inner} can't be loaded ({reason}).") from error
    try:
        model = one_pass_bert.language_model(encoder, len(tokenizer))
        one_pass_bert.apply_differences(model, differences)
    except Exception as error:  # torch's own kinds among them
        path = inner / DIFFERENCES_FILE
        raise CheckpointError(f"{name!r}: {path} does not fit this encoder ({first_line(error)}).") from error
    # It looks back at the encoder's own keys and values.
    cast(Any, model).to(encoder.device, encoder.dtype)
    one_pass_bert.share_words(encoder, model)
    return model, tokenizer, conversation


def question_length(encoder_length: int, positions: int) -> int:
    """Longest direct turn of a thinker that reads as many tokens as its encoder: the embed token is one more."""
    return min(encoder_length + 1, positions)


def _tensors(path: Path, name: str) -> dict[str, Tensor]:
    try:
        stored = load_file(path)
    except Exception as error:  # safetensors raises kinds of its own
        raise CheckpointError(
            f"{name!r}: {path} can't be read ({first_line(error)}). Download or copy the folder again."
        ) from error
    for key, value in stored.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{name!r}: numbers of {key!r} in {path} are not finite. Download or copy the folder again, or train "
                "it again."
            )
    return stored
