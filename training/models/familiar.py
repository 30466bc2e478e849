"""Tells a trained thinker where it knows its way, so that it leaves other questions to the encoder.

    python -m training.models.familiar --checkpoint runs/sft/model --data reasoned/*.jsonl.gz \\
        --sources medquad scifact --out runs/gated

The training questions of the sources become centres of clusters in the encoder's space. A question that is farther
from all of them than one cosine keeps the encoder's vector, and nothing is written for it; from another cosine on it
is moved in full. Name the sources whose held-out questions gain by thinking (``training.data.held_out`` makes sets of
them); the cosines, and by how much P is scaled, are chosen on sources that training left out, which must not get
worse, and on those held-out questions.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from searchr3_embed import ReasoningEmbedder, interruption
from searchr3_embed.adapt.familiar import fit
from searchr3_embed.checkpoint.thinker import has_thinker
from training.data.reading import source_name
from training.data.records import read_records


def chosen_files(data: Sequence[Path], sources: Sequence[str] | None) -> dict[str, Path]:
    """The files of the sources, by name; None takes all.

    Raises:
        ValueError: A source has no file.
    """
    files = {source_name(path.name): path for path in data}
    if missing := sorted(set(sources or ()) - set(files)):
        known = ", ".join(sorted(files))
        raise ValueError(f"No file of --data is the source {', '.join(missing)}; there are {known}.")
    return {name: path for name, path in files.items() if sources is None or name in sources}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    parser = argparse.ArgumentParser(
        prog="python -m training.models.familiar",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of an encoder with a trained thinker")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="the records it was trained on")
    parser.add_argument("--sources", nargs="+", help="the sources that become familiar (default: all of --data)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--centres", type=int, default=256, help="most clusters of a source (default: 256)")
    parser.add_argument("--foreign", type=float, default=0.5, help="cosine up to which nothing moves (default: 0.5)")
    parser.add_argument("--known", type=float, default=0.7, help="cosine from which all of P h counts (default: 0.7)")
    parser.add_argument("--scale", type=float, default=1.0, help="what P is multiplied by (default: 1)")
    parser.add_argument("--seed", type=int, default=7, help="of the sample and the clusters (default: 7)")
    args = parser.parse_args(argv)
    try:
        if not has_thinker(args.checkpoint):
            raise ValueError(f"{args.checkpoint} holds no encoder with a thinker.")
        if args.centres < 1 or not args.scale > 0:
            raise ValueError(f"centres and scale must be above 0, got {args.centres} and {args.scale}.")
        paths = chosen_files(args.data, args.sources)
        questions = {name: [record.query for record in read_records(path)] for name, path in paths.items()}
        embedder = ReasoningEmbedder(args.checkpoint, device="cpu", on_truncate="ignore")
        side = embedder.question_side
        assert side is not None
        familiar = fit(embedder, questions, args.centres, args.foreign, args.known, args.seed)
        embedder.question_side = dataclasses.replace(side, projection=side.projection * args.scale, familiar=familiar)
        embedder.save_pretrained(str(args.out), create_model_card=False)
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(interruption.run(main, "interrupted; the same command begins again, and nothing half written is left"))
