"""``searchr3 save``: a model into a folder that sentence-transformers loads as it is."""

from __future__ import annotations

import argparse
from pathlib import Path

from searchr3_embed.cli.arguments import CommandError
from searchr3_embed.cli.console import note
from searchr3_embed.cli.model import load

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
    """Load and save. A full disk leaves neither half a model nor a spoilt one."""
    from searchr3_embed.files import remove_unfinished, replacing_files

    target = Path(args.folder)
    if target.exists() and not target.is_dir():
        raise CommandError(f"{target}: is a file, expected a folder")
    remove_unfinished(target)
    if target.is_dir() and any(target.iterdir()) and not args.force:
        raise CommandError(f"{target}: is not empty; pass --force to write into it")
    embedder = load(args.name, device="cpu", verbose=args.verbose)
    from safetensors import SafetensorError

    with replacing_files(target) as scratch:
        try:
            embedder.save_pretrained(str(scratch))
        except SafetensorError as error:  # its words for a full disk
            raise CommandError(f"{target}: the model can't be written: {error}") from error
    note(f"{args.name} is saved in {target}; SentenceTransformer({args.folder!r}) loads it")
