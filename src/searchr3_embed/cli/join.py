"""``searchr3 join``: an encoder and a thinker in one folder."""

from __future__ import annotations

import argparse

from searchr3_embed.cli.console import note
from searchr3_embed.cli.save import empty_target, write

SUMMARY = "join a sentence-transformers model and a thinker that has learned nothing yet"
EPILOG = """\
examples:
  searchr3 join BAAI/bge-small-en-v1.5 --out ./mine
  searchr3 join ./my-encoder --thinker Qwen/Qwen2.5-0.5B-Instruct --out ./mine

Until it is trained (python -m training.sft), every vector of the result is the encoder's, bit for bit."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("encoder", metavar="ENCODER", help="a sentence-transformers model, a folder or a hub id")
    parser.add_argument(
        "--thinker",
        metavar="MODEL",
        help="a causal language model, a folder or a hub id (default: the layers of the encoder, a BERT)",
    )
    parser.add_argument("--name", help="what indexes will call the encoder (default: its folder or hub id)")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where to write; made when missing")
    parser.add_argument(
        "--force", action="store_true", help="write into a folder that holds files, replacing the model's"
    )


def run(args: argparse.Namespace) -> None:
    """Join and save."""
    target = empty_target(args.out, args.force)
    from searchr3_embed.embedder import ReasoningEmbedder

    embedder = ReasoningEmbedder.from_encoder(args.encoder, thinker=args.thinker, device="cpu")
    embedder.encoder_name = args.name or embedder.encoder_name
    write(embedder, target)
    note(f"{embedder.encoder_name} and its thinker are in {target}; the thinker has learned nothing yet")
