"""Which file of a checkpoint is the broken one: what a library's error is about, in words that name the file.

Reading a file well is left to the libraries. They are asked here again, one file at a time, once something has failed;
and what they take without a word, though it changes vectors, is looked for before and after they load.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from tokenizers import Tokenizer
from torch import nn
from transformers import CONFIG_MAPPING

from searchr3_embed.checkpoint import CheckpointError
from searchr3_embed.files import first_line

MODULES_FILE = "modules.json"
TOKENIZER_SETTINGS = "tokenizer_config.json"
AGAIN = "Download or copy the folder again."
# Files that the libraries do without, silently, and a field that each of them has when it is the right one.
_SETTINGS = {
    "config_sentence_transformers.json": "__version__",  # prompts
    "sentence_bert_config.json": None,  # what is asked of the transformer
    TOKENIZER_SETTINGS: "tokenizer_class",  # how much of a text is read
}
_SETTINGS_OF_ALL = "config_sentence_transformers.json"
# A tokenizer without any of them is made, too, and knows no word.
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
# Weights as pickles, and the safetensors that all libraries read before them.
_PICKLES = {
    "pytorch_model*.bin": "model*.safetensors",
    "adapter_model.bin": "adapter_model.safetensors",
}
# Made anew wherever a model is loaded, and used by nobody.
_UNUSED_WEIGHTS = ("pooler.", "position_ids", "token_type_ids")


def find(folder: Path) -> str | None:
    """Words for the first file of a model's folder that cannot be what it should be; None where all look sound.

    Args:
        folder: A sentence-transformers or transformers model.
    """
    return next(_problems(folder), None)


def find_in_thinker(folder: Path) -> str | None:
    """As :func:`find`, for a thinker that shares its encoder's layers and holds a tokenizer and prompts only."""
    for path in (*sorted(folder.glob("*.json")), *sorted(folder.glob("*.jinja"))):
        if path.suffix == ".jinja":
            with contextlib.suppress(OSError, ValueError):
                path.read_text(encoding="utf-8")
                continue
            return f"{path} is no text"
        if words := next(_json_problem(path), None):
            return words
    return None


def check_settings(name: str, folder: Path) -> None:
    """Refuses a folder of ours without the settings that decide what is read of a text.

    Args:
        name: What the caller asked for.
        folder: An encoder, as this package saves it.

    Raises:
        CheckpointError: One is missing, or another file stands in its place.
    """
    modules = _listed(folder)
    if not modules:
        raise CheckpointError(f"{name!r}: {folder / MODULES_FILE} lists no modules. {AGAIN}")
    transformer = str(modules[0].get("type", "")).endswith("Transformer")
    for file, field in _SETTINGS.items():
        if transformer or file == _SETTINGS_OF_ALL:  # other first modules keep their tokenizer elsewhere
            if not (folder / file).is_file():
                raise CheckpointError(f"{name!r}: {folder / file} is missing. {AGAIN}")
            check_field(name, folder / file, field)
    if transformer and not any((folder / file).is_file() for file in _VOCABULARIES):
        raise CheckpointError(f"{name!r}: {folder / _VOCABULARIES[0]} is missing. {AGAIN}")


def refuse_pickles(name: str, folder: Path, *, language_model: bool = False) -> None:
    """Refuses weights that are there only as a pickle; torch would read it with ``weights_only=True``.

    Args:
        name: What the caller asked for.
        folder: A transformers or sentence-transformers model.
        language_model: Whether it is loaded with its head, which sentence-transformers would not save.

    Raises:
        CheckpointError: The folder, or that of one of its modules, holds such weights and no safetensors.
    """
    library, stock, call = "sentence_transformers", "SentenceTransformer", "M(f)"
    if language_model:
        library, stock, call = "transformers", "AutoModelForCausalLM", "M.from_pretrained(f)"
    modules = [entry["path"] for entry in _listed(folder) if isinstance(entry.get("path"), str)]
    for place in dict.fromkeys([folder, *(folder / module for module in modules)]):
        for pickle, weights in _PICKLES.items():
            if found := next((path for path in sorted(place.glob(pickle)) if not any(place.glob(weights))), None):
                raise CheckpointError(
                    f"{name!r}: {found} is a pickle, and weights are read from safetensors only. If you trust its "
                    f'origin, convert it: python -c "from {library} import {stock} as M; f = {os.fspath(folder)!r}; '
                    f'{call}.save_pretrained(f)"'
                )


def check_vocabulary(name: str, folder: Path, tokenizer: Any, model: Any) -> None:
    """Refuses a tokenizer that knows more tokens than the model has rows for: it is another model's.

    Args:
        name: What the caller asked for.
        folder: Where both were loaded from.
        tokenizer: The tokenizer.
        model: A ``PreTrainedModel``; nothing is checked for None.

    Raises:
        CheckpointError: There are more tokens than rows.
    """
    rows = None if model is None else model.get_input_embeddings().num_embeddings
    if rows is not None and len(tokenizer) > rows:
        file = _VOCABULARIES[0]
        with contextlib.suppress(Exception):  # tokenizers raises plain Exceptions
            if Tokenizer.from_file(str(folder / file)).get_vocab_size() <= rows:
                file = TOKENIZER_SETTINGS  # it adds tokens
        raise CheckpointError(
            f"{name!r}: {folder / file} is not of this model: it knows {len(tokenizer)} tokens, and the "
            f"weights are for {rows}. {AGAIN}"
        )


def check_tokenizer(name: str, folder: Path) -> None:
    """Refuses a tokenizer whose settings are another file's.

    Raises:
        CheckpointError: They are.
    """
    check_field(name, folder / TOKENIZER_SETTINGS, _SETTINGS[TOKENIZER_SETTINGS])


def check_field(name: str, path: Path, field: str | None) -> None:
    """Refuses a JSON file that lacks the field by which it is known; one that is no JSON is left to its reader.

    Raises:
        CheckpointError: It does.
    """
    value = _json(path)
    if isinstance(value, Exception):
        return
    if not isinstance(value, dict):
        raise CheckpointError(f"{name!r}: {path} must hold an object, not {type(value).__name__}. {AGAIN}")
    if field is not None and field not in value:
        raise CheckpointError(f"{name!r}: {path} is not what it should be: it holds no {field!r}. {AGAIN}")


def check_weights(name: str, folder: Path, model: nn.Module) -> None:
    """Refuses weights that a file does not hold and that were therefore drawn at random.

    Args:
        name: What the caller asked for.
        folder: Where the model was loaded from. Without safetensors files in it nothing is checked.
        model: The model, as loaded.

    Raises:
        CheckpointError: One of its weights is in none of the files.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files or (folder / "adapter_config.json").is_file():
        return
    held = {part for file in files for key in _keys(file) for part in _endings(key)}
    names = (key.replace(".base_layer.", ".") for key in model.state_dict() if "lora_" not in key)
    wanted = [key for key in names if not any(unused in key for unused in _UNUSED_WEIGHTS)]
    lacking = [key for key in wanted if key not in held]
    if lacking:
        raise CheckpointError(
            f"{name!r}: {files[0]} is not of this model: it lacks {len(lacking)} of {len(wanted)} weights, the first "
            f"is {lacking[0]!r}. {AGAIN}"
        )


def _endings(key: str) -> Iterator[str]:
    """``a.b.c``, ``b.c``, ``c``: a file may hold the model inside of a larger one."""
    parts = key.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _keys(file: Path) -> Iterable[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _problems(folder: Path) -> Iterator[str]:
    listed = _listed(folder)
    if (folder / MODULES_FILE).exists() and not listed:
        yield f"{folder / MODULES_FILE} is no list of modules"
    for path in sorted(folder.glob("*.json")):
        yield from _json_problem(path)
    of_transformers = not listed or not listed[0].get("path", "")
    for file in ("config.json", "tokenizer.json") if of_transformers else ():
        if not (folder / file).is_file():
            yield f"{folder / file} is missing"
    weights = sorted(folder.glob("*.safetensors"))
    if of_transformers and not weights:
        yield f"{folder / 'model.safetensors'} is missing"
    for path in weights:
        try:
            _keys(path)
        except Exception as error:  # safetensors raises kinds of its own
            yield f"{path} can't be read: {first_line(error)}"
    for entry in listed:
        yield from _module_problem(folder, entry)


def _listed(folder: Path) -> list[dict[str, Any]]:
    """The modules of a folder; empty where it lists none, or something else."""
    modules = _json(folder / MODULES_FILE)
    return modules if isinstance(modules, list) and all(isinstance(entry, dict) for entry in modules) else []


def _json_problem(path: Path) -> Iterator[str]:
    value = _json(path)
    if path.name == MODULES_FILE and isinstance(value, list):
        return
    if not isinstance(value, dict):
        yield _told(path, value)
    elif path.name == "config.json" and "auto_map" not in value and value.get("model_type") not in CONFIG_MAPPING:
        yield f"{path} is no configuration of a model that is known: its 'model_type' is {value.get('model_type')!r}"
    elif path.name == "tokenizer.json":
        try:
            Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exceptions
            yield f"{path} is no tokenizer: {first_line(error)}"
    elif (field := _SETTINGS.get(path.name)) and field not in value:
        yield f"{path} is not what it should be: it holds no {field!r}"


def _module_problem(folder: Path, entry: dict[str, Any]) -> Iterator[str]:
    """Compares the configuration of a module with what its class takes."""
    place, kind = entry.get("path"), entry.get("type")
    if not isinstance(place, str) or not isinstance(kind, str):
        yield f"{folder / MODULES_FILE} lists a module without path and type"
        return
    module, _, name = kind.rpartition(".")
    try:
        made_by = getattr(importlib.import_module(module), name)
        parameters = inspect.signature(made_by.__init__).parameters
        path = folder / place / made_by.config_file_name
    except (ImportError, AttributeError, ValueError):
        yield f"{folder / MODULES_FILE} names {kind!r}, which is not installed"
        return
    if not place and path.name == "config.json":  # a transformer's own
        return
    if not path.exists():
        yield f"{path} is missing"
        return
    config = _json(path)
    if isinstance(config, Exception) or not isinstance(config, dict):
        yield _told(path, config)
        return
    known = {*parameters, *getattr(made_by, "config_keys", ()), *getattr(made_by, "config_key_renames", ())}
    needed = [key for key, value in parameters.items() if value.default is value.empty and key not in ("self", "args")]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        if unknown := sorted(set(config) - known):
            yield f"{path} is not of {name}, which takes no {unknown[0]!r}"
        if lacking := [key for key in needed if place and key not in config]:  # a transformer's are given by others
            yield f"{path} lacks {lacking[0]!r}"


def _told(path: Path, value: Any) -> str:
    """Words for a file that holds no object."""
    if isinstance(value, Exception):
        return f"{path} can't be read: {(isinstance(value, OSError) and value.strerror) or value}"
    return f"{path} must hold an object, not {type(value).__name__}"


def _json(path: Path) -> Any:
    """The JSON value of a file, or the error."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return error
