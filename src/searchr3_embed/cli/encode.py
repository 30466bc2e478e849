"""``searchr3 encode``: texts into vectors."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchr3_embed.cli.arguments import (
    JSONL_SUFFIXES,
    STDIN,
    CommandError,
    add_field_option,
    add_model_options,
    add_skip_bad_option,
)
from searchr3_embed.cli.console import note, opened, writes_utf8
from searchr3_embed.cli.model import load

if TYPE_CHECKING:
    import numpy as np

    from searchr3_embed.search.passages import Passage

SUMMARY = "turn texts into vectors"
EPILOG = """\
examples:
  searchr3 encode texts.txt -o vectors.npy              one text a line, one row a text
  searchr3 encode corpus.jsonl --as document -o out.jsonl
  searchr3 encode questions.jsonl --field question --as query -o queries.npy
  echo "how tall is Everest?" | searchr3 encode - --as query

A .npy output is a float32 array of shape (texts, dimension). A .jsonl output and the standard output hold
one object a text: {"id": ..., "text": ..., "embedding": [...]} (no id for plain lines). The title of a
record is embedded in front of its text, as in a search. Beside the output, NAME.encoder.json says which
encoder made it; --for FILE makes sure that the vectors of FILE are of the same one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("input", metavar="INPUT", help="a file with one text a line, a .jsonl file, or - for stdin")
    parser.add_argument("-o", "--output", metavar="FILE", help="a .npy or .jsonl file (default: JSONL on stdout)")
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")
    parser.add_argument(
        "--for",
        dest="partner",
        metavar="FILE",
        help="vectors that the new ones will be compared with: stop if another encoder made them",
    )
    parser.add_argument(
        "--as",
        dest="kind",
        choices=("query", "document", "text"),
        default="text",
        help="what the texts are; the model thinks about queries only, unless told otherwise (default: text)",
    )
    parser.add_argument("--format", choices=("lines", "jsonl"), help="format of the input (default: by its name)")
    add_field_option(parser)
    add_skip_bad_option(parser)
    add_model_options(parser, reason="think before embedding (default: for --as query)")


def run(args: argparse.Namespace) -> None:
    """Read, embed, write."""
    output = Path(args.output) if args.output else None
    if output is not None:
        _check_output(output, args.force)
    passages = _read_input(args.input, args.format, args.field, args.skip_bad)
    embedder = load(args.model, device=args.device, verbose=args.verbose)
    name = embedder.encoder_name or args.model
    if args.partner is not None:
        _check_partner(args.partner, name, embedder.probe())
    encode = {"query": embedder.encode_query, "document": embedder.encode_document, "text": embedder.encode}[args.kind]
    vectors = encode(
        [passage.content for passage in passages],
        reason=args.reason,
        batch_size=args.batch_size,
        max_reasoning_tokens=args.max_reasoning_tokens,
        show_progress_bar=sys.stderr.isatty(),
    )
    if output is None:
        for line in _embedding_lines(passages, vectors, ascii_only=not writes_utf8(sys.stdout)):
            print(line)
        return
    import numpy as np

    from searchr3_embed import encoder_identity
    from searchr3_embed.files import replacing

    with replacing(output) as file:
        if output.suffix.lower() == ".npy":
            np.save(file, vectors.astype(np.float32, copy=False))
        else:
            for line in _embedding_lines(passages, vectors):
                file.write(line.encode() + b"\n")
        file.flush()
        # A kill before the new note is written leaves none, and not that of another encoder.
        encoder_identity.note_path(output).resolve().unlink(missing_ok=True)
    encoder_identity.write_note(output, name, embedder.probe())
    note(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers in {output}")


def _check_output(output: Path, force: bool) -> None:
    if output.suffix.lower() not in (".npy", *JSONL_SUFFIXES):
        raise CommandError(f"--output must end in .npy or .jsonl, got {str(output)!r}")
    if output.is_dir():
        raise CommandError(f"{output}: is a folder")
    if output.exists() and not force:
        raise CommandError(f"{output}: exists already; pass --force to replace it")
    if not output.absolute().parent.is_dir():
        raise CommandError(f"{output}: there is no folder {str(output.parent)!r}")


def _check_partner(partner: str, name: str, probes: np.ndarray) -> None:
    """Stops where the vectors of a file are another encoder's; says so where nothing tells whose they are."""
    from searchr3_embed import encoder_identity

    if not Path(partner).is_file():
        raise CommandError(f"--for {partner}: there is no such file")
    noted = encoder_identity.read_note(partner)
    if noted is None:
        note(
            f"searchr3: warning: nothing is noted beside {partner} about its encoder, as version 0.1.0 did: vectors "
            "of 0.1.0 are of another space"
        )
    elif not encoder_identity.same_space(probes, noted[1]):
        raise CommandError(f"--for {partner}: its vectors are of {noted[0]!r}, and {name!r} is another encoder")


def _read_input(name: str, form: str | None, field: str, skip_bad: bool) -> list[Passage]:
    """The texts to encode, in order: records of a JSONL file, or lines (an empty line is an empty text)."""
    from searchr3_embed.search.passages import read_jsonl, read_lines

    shown = "standard input" if name == STDIN else name
    of_records = (form or ("jsonl" if Path(name).suffix.lower() in JSONL_SUFFIXES else "lines")) == "jsonl"
    with opened(name) as file:
        if of_records:
            return read_jsonl(file, field=field, name=shown, skip_bad=skip_bad)
        return read_lines(file, name=shown, skip_bad=skip_bad)


def _embedding_lines(passages: Sequence[Passage], vectors: np.ndarray, *, ascii_only: bool = False) -> Iterator[str]:
    for passage, vector in zip(passages, vectors, strict=True):
        record: dict[str, Any] = {"id": passage.id} if passage.id else {}
        if passage.title:
            record["title"] = passage.title
        record["text"] = passage.text
        # The shortest digits that give the same float32 again; tolist() would print all of a float64.
        record["embedding"] = [float(str(value)) for value in vector]
        yield json.dumps(record, ensure_ascii=ascii_only)
