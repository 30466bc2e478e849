"""Thinkers that have learned nothing yet, and the encoders that they are joined to: P is zero."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from searchr3_embed.checkpoint import CheckpointError, damage, locate
from searchr3_embed.checkpoint.load import check_weights, load_model
from searchr3_embed.checkpoint.thinker import has_thinker, question_length
from searchr3_embed.conversation import Conversation, OnTruncate
from searchr3_embed.files import first_line
from searchr3_embed.models import new_token, one_pass_bert
from searchr3_embed.prompt_words import PROMPTS_FILE, Prompts
from searchr3_embed.question_side import ENCODER, QuestionSide

# The first token of a thinker that shares an encoder's layers: its state chooses the first word.
THINK_TOKEN = "<|think|>"
# Words for a language model that has no prompts of its own.
DEFAULT_PROMPTS = Prompts(
    direct_system="Represent the text for retrieval.",
    reasoning_system="Name in a few words what a text that answers the question would talk about, then stop.",
    max_reasoning_tokens=48,
)
_SHARED_BUDGET = 8


def load_encoder(encoder: str | os.PathLike[str], **kwargs: Any) -> SentenceTransformer:
    """Loads a sentence-transformers model as the stock class does.

    Args:
        encoder: A folder or a hub id.
        **kwargs: Arguments of ``SentenceTransformer``; ``trust_remote_code`` is passed on and never set.

    Raises:
        CheckpointError: It can't be found, is no sentence-transformers model, or needs code that was not allowed.
    """
    folder = locate.find(encoder, **locate.take_options(kwargs))
    with telling_what_failed(os.fspath(encoder), folder):
        loaded = SentenceTransformer(str(folder), local_files_only=True, **kwargs)
    check_weights(loaded, os.fspath(encoder), folder)
    return loaded


@contextlib.contextmanager
def telling_what_failed(name: str, folder: Path) -> Iterator[None]:
    """While sentence-transformers loads an encoder: what it raises becomes one sentence that names the encoder.

    Raises:
        CheckpointError: It is no sentence-transformers model, is damaged, holds weights as pickles only, or needs code
            that was not allowed.
    """
    if not (folder / "modules.json").is_file():
        raise CheckpointError(
            f"{name!r} is no sentence-transformers model: {folder} holds no modules.json. A plain transformers model "
            "becomes one by SentenceTransformer(...).save_pretrained(folder)."
        )
    damage.refuse_pickles(name, folder)
    if has_thinker(folder):
        damage.check_settings(name, folder)
    try:
        yield
    except Exception as error:  # sentence-transformers, transformers and safetensors each raise their own kinds
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"The encoder {name!r} needs code that lies beside its weights: read it, and pass "
                "trust_remote_code=True if it may run."
            ) from error
        reason = damage.find(folder) or first_line(error)
        raise CheckpointError(f"The encoder {name!r} can't be loaded ({reason}). {damage.AGAIN}") from error


def sharing_layers(
    encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dimension: int, max_length: int, seed: int = 7
) -> QuestionSide:
    """An untrained thinker that shares an encoder's layers, with P zero.

    Args:
        encoder: The encoder's transformer, a BERT.
        tokenizer: The encoder's.
        dimension: Of its vectors.
        max_length: Tokens that the encoder reads.
        seed: Kept so that what is drawn repeats.

    Raises:
        ValueError: The encoder is no BERT.
    """
    thinker_tokenizer = copy.deepcopy(tokenizer)
    thinker_tokenizer.model_max_length = max_length
    prompts = Prompts(reasoning_answer=THINK_TOKEN, max_reasoning_tokens=_SHARED_BUDGET, distinct_tokens=True)
    thinker_tokenizer.add_special_tokens({"additional_special_tokens": [THINK_TOKEN, prompts.embed_token]})
    thinker_tokenizer.chat_template = (
        f"{tokenizer.cls_token}{{% for m in messages %}}{{{{ m.content }}}}{tokenizer.sep_token}{{% endfor %}}"
    )
    model = one_pass_bert.language_model(encoder, len(thinker_tokenizer), seed)
    # It looks back at the encoder's own keys and values.
    cast(Any, model).to(encoder.device, encoder.dtype)
    one_pass_bert.share_words(encoder, model)
    # The token that closes a reasoning ends the turn, too.
    model.generation_config.eos_token_id = thinker_tokenizer.convert_tokens_to_ids(prompts.embed_token)
    conversation = Conversation(
        thinker_tokenizer,
        prompts,
        max_length=question_length(max_length, encoder.config.max_position_embeddings),
        position_limit=encoder.config.max_position_embeddings,
        # The encoder reads the same tokens and says what it cuts.
        on_truncate="ignore",
    )
    projection = torch.zeros(dimension, model.config.hidden_size, device=model.device)
    return QuestionSide(model, thinker_tokenizer, conversation, projection, ENCODER, {})


def language_model(
    thinker: str | os.PathLike[str],
    dimension: int,
    *,
    prompts: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    on_truncate: OnTruncate = "warn",
) -> QuestionSide:
    """Any causal language model as a thinker, with P zero; a token that it lacks is added as an untrained row.

    Args:
        thinker: A folder or a hub id.
        dimension: Of the encoder's vectors.
        prompts: Fields of ``Prompts``; None takes the model's own, or :data:`DEFAULT_PROMPTS`.
        device: Where it will run.
        on_truncate: What happens when a question is longer than it reads.

    Raises:
        CheckpointError: It can't be found or loaded, or is no causal language model.
        ValueError: ``prompts`` is not accepted.
    """
    name = os.fspath(thinker)
    folder = locate.find(thinker)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)  # a folder here  # nosec B615
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # a folder here  # nosec B615
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(f"{name!r} can't be loaded as a causal language model ({first_line(error)}).") from error
    model: Any = load_model(name, folder, config, device, None)
    model.to(device)
    if prompts is not None:
        words = Prompts(**prompts)
    else:
        words = Prompts.load(folder) if (folder / PROMPTS_FILE).is_file() else DEFAULT_PROMPTS
    new_token.ensure(model, tokenizer, words.embed_token)
    positions = int(getattr(model.config, "max_position_embeddings", 0) or tokenizer.model_max_length)
    try:
        conversation = Conversation(
            tokenizer,
            words,
            max_length=min(positions, tokenizer.model_max_length),
            position_limit=positions,
            on_truncate=on_truncate,
        )
    except ValueError as error:
        raise CheckpointError(f"{name!r}: {error}") from error
    projection = torch.zeros(dimension, model.config.hidden_size, device=model.device)
    return QuestionSide(model, tokenizer, conversation, projection, Path(name).name)
