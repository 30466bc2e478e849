"""A name, folder or hub id in; a causal language model, its tokenizer and its prompts out.

Three kinds of checkpoint load: the packaged one, folders saved by this package, and released Search-R3 checkpoints,
which are plain causal-LM folders whose prompts stand in the ``example.py`` beside the weights. Anything else is
refused with a sentence that says what to do, because a model that was never trained for this still yields vectors,
only bad ones.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.resources
import json
import logging
import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from searchr3_embed.conversation import PROMPTS_FILE, Conversation, OnTruncate, Prompts, find_embed_token

logger = logging.getLogger(__name__)

PACKAGED = "searchr3"
ALIASES = {
    PACKAGED: "the weights packaged with searchr3-embed",
    "searchr3-small": "ytgui/Search-R3.0-Small",
    "searchr3-large": "ytgui/Search-R3.0-Large",
}

# The example of the released checkpoints runs with this length; the authors say that quality drops on long text.
_RELEASED_MAX_LENGTH = 1024
_RELEASED_EXAMPLE = "example.py"
_DOWNLOADED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.md", _RELEASED_EXAMPLE]
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_NETWORK_PROBE_SECONDS = 1.0


class CheckpointError(ValueError):
    """A checkpoint can't be found or used; the message says why and what to do."""


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


def packaged_folder() -> Path:
    """Folder of the packaged default weights."""
    return Path(str(importlib.resources.files("searchr3_embed"))) / "weights" / "searchr3-mini"


def find(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Resolves an alias, a folder or a hub id to a local folder, downloading it if need be.

    An alias wins over a folder of the same name in the current directory; write ``./name`` for the folder.

    Raises:
        CheckpointError: There is no such alias, folder or repository, or the hub can't be reached.
    """
    text = os.fspath(name)
    if not isinstance(text, str) or not text.strip():
        raise CheckpointError(
            f"The model must be an alias ({', '.join(ALIASES)}), a folder or a hub id, got {name!r}."
        )
    if text == PACKAGED:
        return packaged_folder()
    repository = ALIASES.get(text, text)
    path = Path(text).expanduser()
    if text not in ALIASES and path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(f"{text!r} is a file; pass the folder that holds it.")
    looks_like_path = text.startswith((".", "~", "/", "\\")) or "\\" in text or repository.count("/") != 1
    if looks_like_path:
        raise CheckpointError(
            f"There is no model {text!r}: it is neither an alias ({', '.join(ALIASES)}), nor a folder, nor a hub id "
            "like 'owner/name'."
        )
    return _download(repository, revision, token, cache_folder, local_files_only)


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
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises many kinds for a damaged file
        raise CheckpointError(f"{name!r}: configuration or tokenizer can't be read ({_first_line(error)}).") from error
    try:
        prompts = _prompts(name, folder, tokenizer, system_prompts)
        positions = int(getattr(config, "max_position_embeddings", 0) or tokenizer.model_max_length)
        most = positions if (folder / PROMPTS_FILE).exists() else min(positions, _RELEASED_MAX_LENGTH)
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
    return Checkpoint(name, folder, _load_model(name, folder, config, device, model_kwargs), tokenizer, conversation)


def read_released_prompts(path: Path) -> dict[str, str]:
    """Reads the system prompts of a released checkpoint from its ``example.py``, which is parsed and never executed.

    Returns:
        ``{"direct": ..., "reasoning": ...}`` from the constants ``EMBEDDING`` and ``GENERATION``, verbatim.

    Raises:
        CheckpointError: The file is not Python, or lacks one of the two string constants.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise CheckpointError(
            f"{path} can't be parsed ({_first_line(error)}); pass system_prompts instead."
        ) from error
    constants = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        try:
            text = ast.literal_eval(value)
        except ValueError:
            continue
        if isinstance(text, str):
            constants.update({target.id: text for target in targets if isinstance(target, ast.Name)})
    missing = [name for name in ("EMBEDDING", "GENERATION") if name not in constants]
    if missing:
        raise CheckpointError(f"{path} lacks the string constants {missing}; pass system_prompts instead.")
    return {"direct": constants["EMBEDDING"], "reasoning": constants["GENERATION"]}


def _check_arguments(system_prompts: Mapping[str, str] | None, on_truncate: str) -> None:
    if system_prompts is not None and (
        not isinstance(system_prompts, Mapping)
        or set(system_prompts) != {"direct", "reasoning"}
        or not all(isinstance(prompt, str) for prompt in system_prompts.values())
    ):
        raise ValueError(f"system_prompts must hold the texts 'direct' and 'reasoning', got {system_prompts!r}.")
    if on_truncate not in get_args(OnTruncate):
        raise ValueError(f"on_truncate must be one of {list(get_args(OnTruncate))}, got {on_truncate!r}.")


def _check_files(name: object, folder: Path) -> None:
    """Says which part of a checkpoint is missing before a library fails on it."""
    if not (folder / "config.json").is_file():
        hint = " Merge the adapter into its base model first." if (folder / "adapter_config.json").is_file() else ""
        raise CheckpointError(f"{name!r} is no model folder: {folder} has no config.json.{hint}")
    if not any((folder / file).is_file() for file in _WEIGHT_FILES):
        raise CheckpointError(f"{name!r} has no weights: {folder} holds none of {', '.join(_WEIGHT_FILES)}.")
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{name!r} has no tokenizer: {folder} holds no tokenizer.json.")


def _prompts(
    name: object, folder: Path, tokenizer: PreTrainedTokenizerBase, system_prompts: Mapping[str, str] | None
) -> Prompts:
    """The checkpoint's own words, from the caller, ``conversation.json`` or ``example.py``."""
    if (folder / PROMPTS_FILE).is_file():
        prompts = Prompts.load(folder)
    else:
        prompts = Prompts()
        find_embed_token(tokenizer, prompts.embed_token)
        if system_prompts is None:
            if not (folder / _RELEASED_EXAMPLE).is_file():
                raise CheckpointError(
                    f"{name!r} knows the embed token but holds no prompts (neither {PROMPTS_FILE} nor "
                    f"{_RELEASED_EXAMPLE}): pass system_prompts={{'direct': ..., 'reasoning': ...}} with the words it "
                    "was trained with."
                )
            system_prompts = read_released_prompts(folder / _RELEASED_EXAMPLE)
    if system_prompts is not None:
        prompts = dataclasses.replace(
            prompts, direct_system=system_prompts["direct"], reasoning_system=system_prompts["reasoning"]
        )
    return prompts


def _load_model(
    name: object, folder: Path, config: Any, device: str | torch.device, model_kwargs: Mapping[str, Any] | None
) -> PreTrainedModel:
    options = dict(model_kwargs or {})
    if "torch_dtype" in options:
        options["dtype"] = options.pop("torch_dtype")
    options.setdefault("dtype", torch.float32 if torch.device(device).type == "cpu" else "auto")
    if config.model_type == "bert" and not config.is_decoder:
        raise CheckpointError(f"{name!r} is a bidirectional encoder; reasoning needs a causal language model.")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, output_loading_info=True, local_files_only=True, **options
        )
    except Exception as error:  # safetensors, pickle and transformers each raise their own kinds
        raise CheckpointError(
            f"{name!r}: the weights can't be loaded ({_first_line(error)}). Download or copy the folder again."
        ) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name!r}: {len(missing)} weights are missing (the first is {missing[0]!r}), so the model would be "
            "partly random. Download or copy the folder again, or save it with its language-modelling head."
        )
    model.eval()
    return cast(PreTrainedModel, model)


def _download(
    repository: str, revision: str | None, token: bool | str | None, cache_folder: str | None, local_files_only: bool
) -> Path:
    """Fetches a repository from the hub; falls back to the local copy at once when the hub can't be reached."""
    offline = local_files_only or huggingface_hub.constants.HF_HUB_OFFLINE or not _hub_answers()
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            token=token,
            cache_dir=cache_folder,
            local_files_only=bool(offline),
            allow_patterns=_DOWNLOADED_FILES,
        )
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repository!r} is not on this machine and the hub can't be reached: connect to the network, or copy "
            f"the model into a folder and pass its path; {PACKAGED!r} works without network."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no model {repository!r} on the hub, or it is private: check the name, or run hf auth login."
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(f"{repository!r} can't be downloaded ({_first_line(error)}).") from error
    return Path(folder)


def _hub_answers() -> bool:
    """True if the hub (or a proxy) takes a connection within a second: its client would retry for a minute."""
    endpoint = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    host, port = endpoint.hostname, endpoint.port or (80 if endpoint.scheme == "http" else 443)
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    if proxy and host and not urllib.request.proxy_bypass(host):
        return True  # the proxy resolves and connects; its own errors come quickly
    if not host:
        return False

    connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), timeout=_NETWORK_PROBE_SECONDS).close()
            connected.set()

    # Name resolution has no timeout of its own, so the attempt runs aside, in a thread that nobody waits for.
    prober = threading.Thread(target=connect, daemon=True)
    prober.start()
    prober.join(_NETWORK_PROBE_SECONDS)
    return connected.is_set()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


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
