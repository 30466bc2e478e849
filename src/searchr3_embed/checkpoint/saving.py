"""Where weights are written to disk: what a saved embedder's folder holds beyond what the stock class writes.

A folder is written aside and moved into place when it is whole, so that whatever stops the saving leaves the old one.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from sentence_transformers.sentence_transformer.modules import Transformer

from searchr3_embed.checkpoint.load import WEIGHT_FILES
from searchr3_embed.files import write_json
from searchr3_embed.folders import replacing_files
from searchr3_embed.prompt_words import Prompts

_OLDER_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")


@contextlib.contextmanager
def whole_folder(path: str | Path, prompts: Prompts) -> Iterator[Path]:
    """Gives an empty folder for the files of the stock class; adds ours, and moves all to ``path`` at the end.

    The result is a folder that the stock class loads, direct mode, and ours loads whole. Other files that ``path``
    holds stay; weights of an earlier saving in another layout go, for they would be loaded in place of the new ones.

    Args:
        path: Where the files belong.
        prompts: The words of the turns.

    Raises:
        OSError: The folder can't be written.
    """
    with whole_encoder(path) as scratch:
        yield scratch
        prompts.save(scratch)
        _name_the_stock_class(scratch / "modules.json")


@contextlib.contextmanager
def whole_encoder(path: str | Path) -> Iterator[Path]:
    """Gives an empty folder for the files of an encoder and its thinker, and moves all to ``path`` at the end.

    Other files stay, and weights of an earlier saving go, as for :func:`whole_folder`.

    Args:
        path: Where the files belong.

    Raises:
        OSError: The folder can't be written.
    """
    with replacing_files(path, stale=_is_weights) as scratch:
        yield scratch


def _is_weights(name: str) -> bool:
    return (
        name in WEIGHT_FILES
        or name in ("pytorch_model.bin", "pytorch_model.bin.index.json")
        or _SHARD.fullmatch(name) is not None
    )


def _name_the_stock_class(listing: Path) -> None:
    """The base class names our subclass of its Transformer; stock libraries must find their own."""
    modules = json.loads(listing.read_text(encoding="utf-8"))
    modules[0]["type"] = f"{Transformer.__module__}.{Transformer.__name__}"
    write_json(listing, modules)
