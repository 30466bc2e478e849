"""``searchr3 save``: a model into a folder that sentence-transformers loads as it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from searchr3_embed.cli.arguments import CommandError
from searchr3_embed.cli.console import note
from searchr3_embed.cli.model import load

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder

SUMMARY = "write a model into a folder that sentence-transformers loads as it is"
EPILOG = """\
examples:
  searchr3 save searchr3 ./searchr3
  python -c "from sentence_transformers import SentenceTransformer; SentenceTransformer('searchr3')\""""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("name", metavar="NAME", help="searchr3, searchr3-small, searchr3-large, a folder or a hub id")
    parser.add_argument("folder", metavar="FOLDER", help="where to write; made when missing")
    parser.add_argument(
        "--force", action="store_true", help="write into a folder that holds files, replacing the model's"
    )


def run(args: argparse.Namespace) -> None:
    """Load and save."""
    target = empty_target(args.folder, args.force)
    write(load(args.name, device="cpu", verbose=args.verbose), target)
    note(f"{args.name} is saved in {target}; SentenceTransformer({args.folder!r}) loads it")


def empty_target(folder: str, force: bool) -> Path:
    """The folder to write into.

    Raises:
        CommandError: It is a file, or holds files and ``force`` is off.
    """
    from searchr3_embed.files import remove_unfinished

    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise CommandError(f"{target}: is a file, expected a folder")
    remove_unfinished(target)
    if target.is_dir() and any(target.iterdir()) and not force:
        raise CommandError(f"{target}: is not empty; pass --force to write into it")
    return target


def write(embedder: ReasoningEmbedder, target: Path) -> None:
    """Save a model. A full disk leaves neither half a model nor a spoilt one.

    Raises:
        CommandError: The disk is full.
    """
    from safetensors import SafetensorError

    try:
        embedder.save_pretrained(str(target))
    except SafetensorError as error:  # its words for a full disk
        raise CommandError(f"{target}: the model can't be written: {error}") from error
