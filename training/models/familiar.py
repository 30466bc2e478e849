"""Tells a trained thinker where it knows its way, so that it leaves other questions to the encoder.

    python -m training.models.familiar --checkpoint runs/sft/model --data reasoned/*.jsonl.gz \\
        --config training/configs/mini.yaml --out runs/gated

The questions of the training data become centres of clusters in the encoder's space. A question that is farther from
all of them than one cosine keeps the encoder's vector; from another cosine on it is moved in full. Both, and by how
much P is scaled, are chosen on sources that training left out (which must not get worse) and on held-out questions of
those it saw.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import torch
import yaml

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoint.thinker import has_thinker
from searchr3_embed.question_side import Familiar
from training.data.reading import source_name
from training.data.records import read_records

# More questions a cluster than that do not move its centre.
_QUESTIONS_A_CENTRE = 100


def centres(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Centres of clusters by spherical k-means.

    Args:
        vectors: Unit rows, float32 of shape (questions, dimension).
        count: Number of centres; as many as there are questions if that is less.
        seed: Of the first centres.

    Returns:
        Unit rows, float32 of shape (centres, dimension).
    """
    count = min(count, len(vectors))
    means = faiss.Kmeans(vectors.shape[1], count, niter=20, spherical=True, seed=seed, min_points_per_centroid=1)
    means.train(np.ascontiguousarray(vectors))
    return np.asarray(means.centroids, dtype=np.float32)


def trained_on(data: Sequence[Path], config: Path) -> list[Path]:
    """The files whose sources the settings name; what training left out must not become familiar.

    Raises:
        ValueError: The settings name no sources, or none of the files is one.
        OSError: They can't be read.
    """
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    sources = settings.get("sources") if isinstance(settings, dict) else None
    found = [path for path in data if source_name(path.name) in (sources or ())]
    if not found:
        raise ValueError(f"{config} names none of the {len(data)} files among its sources.")
    return found


def fit(
    embedder: ReasoningEmbedder, questions: Sequence[str], count: int, foreign: float, known: float, seed: int
) -> Familiar:
    """Where a thinker knows its way, from a sample of the questions that it was trained on.

    Raises:
        ValueError: There are no questions, or the cosines are out of order.
    """
    if not questions:
        raise ValueError("There are no questions in the data.")
    if not -1 <= foreign < known <= 1:
        raise ValueError(f"foreign must be below known, both from -1 to 1, got {foreign} and {known}.")
    distinct = sorted(set(questions))
    sample = random.Random(seed).sample(distinct, min(len(distinct), count * _QUESTIONS_A_CENTRE))
    vectors = embedder.encode_query(sample, reason=False, normalize_embeddings=True, show_progress_bar=True)
    return Familiar(torch.from_numpy(centres(vectors, count, seed)), foreign, known)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    parser = argparse.ArgumentParser(
        prog="python -m training.models.familiar",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of an encoder with a trained thinker")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="the records it was trained on")
    parser.add_argument(
        "--config",
        type=Path,
        help="settings of training.sft: of --data, only the sources that they name count (default: all)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--centres", type=int, default=256, help="number of clusters (default: 256)")
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
        paths = args.data if args.config is None else trained_on(args.data, args.config)
        questions = [record.query for path in paths for record in read_records(path)]
        embedder = ReasoningEmbedder(args.checkpoint, device="cpu", on_truncate="ignore")
        side = embedder.question_side
        assert side is not None
        familiar = fit(embedder, questions, args.centres, args.foreign, args.known, args.seed)
        embedder.question_side = dataclasses.replace(side, projection=side.projection * args.scale, familiar=familiar)
        embedder.save_pretrained(str(args.out), create_model_card=False)
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
