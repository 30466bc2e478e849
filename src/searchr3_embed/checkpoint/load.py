"""A folder in; a causal language model, its tokenizer and its prompts out.

Three kinds of checkpoint load: the packaged one, folders saved by this package, and released Search-R3 checkpoints.
Anything else is refused with a sentence that says what to do, because a model that was never trained for this still
yields vectors, only bad ones.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from searchr3_embed.checkpoint import SETTINGS_FILE, THINKER_FOLDER, CheckpointError, damage, released_prompts
from searchr3_embed.conversation import Conversation, OnTruncate, find_embed_token
from searchr3_embed.files import first_line
from searchr3_embed.prompt_words import PROMPTS_FILE, Prompts

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        name: What the caller asked for.
        folder: Where it was read from.
        model: The causal language model with its head.
        tokenizer: The tokenizer as saved.
        conversation: The turns in the checkpoint's own words.
    """

    name: str
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    conversation: Conversation


def load(
    folder: Path,
    *,
    name: str | None = None,
    device: str | torch.device = "cpu",
    system_prompts: Mapping[str, str] | None = None,
    on_truncate: OnTruncate = "warn",
    model_kwargs: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Loads a checkpoint from the folder that ``find`` named.

    Args:
        folder: Where the files are.
        name: What the caller asked for, for messages; None takes the folder.
        device: Where it will run: on a CPU the weights become float32, elsewhere they keep the saved dtype.
        system_prompts: The system prompts ``direct`` and ``reasoning``, for a checkpoint that holds none, or to
            replace its own.
        on_truncate: What happens when a text is cut.
        model_kwargs: Passed to ``AutoModelForCausalLM.from_pretrained`` (``dtype``, ``attn_implementation`` ...).

    Raises:
        CheckpointError: It is damaged or incomplete, or was never trained to embed.
        ValueError: ``system_prompts`` or ``on_truncate`` is not accepted.
    """
    name = name or str(folder)
    _check_arguments(system_prompts, on_truncate)
    _check_files(name, folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)  # a folder here  # nosec B615
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # a folder here  # nosec B615
    except Exception as error:  # transformers raises many kinds for a damaged file
        reason = damage.find(folder) or first_line(error)
        raise CheckpointError(f"{name!r}: configuration or tokenizer can't be read ({reason}).") from error
    try:
        prompts = _prompts(name, folder, tokenizer, system_prompts)
        positions = int(getattr(config, "max_position_embeddings", 0) or tokenizer.model_max_length)
        most = positions if (folder / PROMPTS_FILE).exists() else min(positions, released_prompts.MAX_LENGTH)
        conversation = Conversation(
            tokenizer,
            prompts,
            max_length=min(most, tokenizer.model_max_length),
            position_limit=positions,
            on_truncate=on_truncate,
        )
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{name!r}: {error}") from error
    return Checkpoint(name, folder, load_model(name, folder, config, device, model_kwargs), tokenizer, conversation)


def describe(folder: Path) -> dict[str, Any]:
    """Size and kind of a checkpoint on disk, without loading it: for ``searchr3 env``."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {
        "folder": str(folder),
        "model_type": config.get("model_type"),
        "dimension": config.get("hidden_size"),
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "weights_bytes": weights,
    }


def stock_settings(folder: Path, name: str) -> dict[str, Any]:
    """What the stock class keeps of a model: prompts, the similarity function; empty for a plain language model.

    Raises:
        CheckpointError: The file is damaged, or is another one.
    """
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{name!r}: {path} can't be read ({first_line(error)}). {damage.AGAIN}") from error
    damage.check_field(name, path, "__version__")
    return cast(dict[str, Any], settings)


def _check_arguments(system_prompts: Mapping[str, str] | None, on_truncate: str) -> None:
    if system_prompts is not None and (
        not isinstance(system_prompts, Mapping)
        or set(system_prompts) != {"direct", "reasoning"}
        or not all(isinstance(prompt, str) for prompt in system_prompts.values())
    ):
        raise ValueError(f"system_prompts must hold the texts 'direct' and 'reasoning', got {system_prompts!r}.")
    check_on_truncate(on_truncate)


def check_on_truncate(value: str) -> None:
    """Refuses what is no way to treat long texts.

    Raises:
        ValueError: It is none of ``"warn"``, ``"error"`` and ``"ignore"``.
    """
    if value not in get_args(OnTruncate):
        raise ValueError(f"on_truncate must be one of {list(get_args(OnTruncate))}, got {value!r}.")


def _check_files(name: object, folder: Path) -> None:
    """Says which part of a checkpoint is missing before a library fails on it."""
    if (folder / THINKER_FOLDER / PROMPTS_FILE).is_file():
        raise CheckpointError(f"{name!r} has a thinker, but {folder / SETTINGS_FILE} is missing. {damage.AGAIN}")
    if not (folder / "config.json").is_file():
        hint = " Merge the adapter into its base model first." if (folder / "adapter_config.json").is_file() else ""
        raise CheckpointError(f"{name!r} is no model folder: {folder} has no config.json.{hint}")
    damage.refuse_pickles(f"{name}", folder, language_model=True)
    if not any((folder / file).is_file() for file in WEIGHT_FILES):
        raise CheckpointError(f"{name!r} has no weights: {folder} holds none of {', '.join(WEIGHT_FILES)}.")
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{name!r} has no tokenizer: {folder} holds no tokenizer.json.")
    if (folder / damage.TOKENIZER_SETTINGS).is_file():
        damage.check_tokenizer(f"{name}", folder)


def _prompts(
    name: object, folder: Path, tokenizer: PreTrainedTokenizerBase, system_prompts: Mapping[str, str] | None
) -> Prompts:
    """The words of the turns: the caller's, or those in ``conversation.json`` or ``example.py``."""
    if (folder / PROMPTS_FILE).is_file():
        prompts = Prompts.load(folder)
    else:
        prompts = Prompts()
        find_embed_token(tokenizer, prompts.embed_token)
        if system_prompts is None:
            if not (folder / released_prompts.EXAMPLE_FILE).is_file():
                raise CheckpointError(
                    f"{name!r} knows the embed token but holds no prompts (neither {PROMPTS_FILE} nor "
                    f"{released_prompts.EXAMPLE_FILE}): pass system_prompts={{'direct': ..., 'reasoning': ...}} "
                    "with the words it was trained with."
                )
            system_prompts = released_prompts.read_prompts(folder / released_prompts.EXAMPLE_FILE)
    if system_prompts is not None:
        prompts = dataclasses.replace(
            prompts, direct_system=system_prompts["direct"], reasoning_system=system_prompts["reasoning"]
        )
    return prompts


def load_model(
    name: object, folder: Path, config: Any, device: str | torch.device, model_kwargs: Mapping[str, Any] | None
) -> PreTrainedModel:
    """The whole causal language model of a folder, in evaluation mode.

    Raises:
        CheckpointError: It is no causal language model, or its weights are damaged or incomplete.
    """
    # Said aloud: without it, transformers asks at a terminal whether to run code that stands in the folder.
    options = {"trust_remote_code": False, **(model_kwargs or {})}
    if "torch_dtype" in options:
        options["dtype"] = options.pop("torch_dtype")
    options.setdefault("dtype", torch.float32 if torch.device(device).type == "cpu" else "auto")
    if config.model_type == "bert" and not config.is_decoder:
        raise CheckpointError(f"{name!r} is a bidirectional encoder; reasoning needs a causal language model.")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(  # a folder here  # nosec B615
            folder, config=config, output_loading_info=True, local_files_only=True, **options
        )
    except Exception as error:  # safetensors, pickle and transformers each raise their own kinds
        raise CheckpointError(
            f"{name!r}: the weights can't be loaded ({damage.find(folder) or first_line(error)}). {damage.AGAIN}"
        ) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name!r}: {len(missing)} weights are missing (the first is {missing[0]!r}), so the model would be "
            "partly random. Download or copy the folder again, or save it with its language-modelling head."
        )
    check_weights(model, name, folder)
    model.eval()
    return cast(PreTrainedModel, model)


def check_weights(model: torch.nn.Module, name: object, folder: Path) -> None:
    """Refuses weights of which a number is infinite or NaN: every vector would be NaN.

    Raises:
        CheckpointError: There is one; the message names the weight.
    """
    for weight, value in model.named_parameters():
        if value.is_floating_point() and value.numel() and value.device.type != "meta":
            least, most = value.detach().aminmax()  # NaN if one is NaN, and in one pass without a copy
            if not (bool(least.isfinite()) and bool(most.isfinite())):
                raise CheckpointError(
                    f"{name!r}: numbers of the weight {weight!r} in {folder} are not finite. Download or copy the "
                    "folder again, or train it again."
                )
