"""Finds out when a checkpoint's thinking pays, so that ``reason="auto"`` thinks only then.

    python -m training.calibrate --model runs/sft/model --data DATA/train --exclude DATA/eval

For training queries of every source it measures what reasoning changes: the DCG of the right documents among those of
all sources, after reasoning minus direct. A ridge regression on the direct embedding learns to expect that; queries
kept apart choose the threshold, at the point where the gain gathered so far is farthest above what the same number of
random queries would have brought. The result is written into the checkpoint folder (``adaptive.json``), where
``ReasoningEmbedder`` finds it. Evaluation queries play no part.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchr3_embed.adaptive import Gate
from training.beir import DataError
from training.data import Record, load, source_names
from training.reward import scaled_dcg

logger = logging.getLogger("training.calibrate")

# One query in so many chooses the threshold instead of fitting the regression.
KEPT_APART_ONE_IN = 4
# Ridge penalties to choose from, by leave-one-out error.
PENALTIES = np.logspace(-2, 3, 12)
LEAST_QUERIES = 40


def rank_quality(queries: np.ndarray, documents: np.ndarray, positives: Sequence[Sequence[int]]) -> np.ndarray:
    """DCG of each query's positives among all documents over the best there could be, without a cut-off.

    Args:
        queries: Unit vectors, shape (queries, dimension).
        documents: Unit vectors, shape (documents, dimension).
        positives: Rows of the right documents of each query.

    Returns:
        Float64 array of shape (queries,), from 0 to 1.
    """
    values = np.empty(len(queries))
    for i, mine in enumerate(positives):
        scores = documents @ queries[i]
        own = np.sort(scores[list(mine)])[::-1]
        others = np.delete(scores, mine)
        ranks = np.array([np.count_nonzero(others > score) for score in own]) + np.arange(len(own))
        values[i] = scaled_dcg(ranks, np.ones(len(own)))
    return values


def gains(
    embedder: Any, records: Sequence[Record], more: Sequence[str] = (), batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """What reasoning adds for each query, ranked among the documents of all of them.

    Args:
        embedder: A ``ReasoningEmbedder``.
        records: Queries with positives and, where known, negatives.
        more: Further documents.
        batch_size: Texts computed at once.

    Returns:
        Direct embeddings, shape (records, dimension), and the gains, shape (records,).
    """
    known = (text for record in records for text in (*record.positives, *record.negatives))
    texts = list(dict.fromkeys([*known, *more]))
    number = {text: i for i, text in enumerate(texts)}
    documents = embedder.encode_document(texts, batch_size=batch_size, show_progress_bar=True)
    queries = [record.query for record in records]
    direct = embedder.encode_query(queries, reason=False, batch_size=batch_size, show_progress_bar=False)
    thought = embedder.encode_query(queries, reason=True, batch_size=batch_size, show_progress_bar=True)
    positives = [[number[text] for text in record.positives] for record in records]
    before, after = (rank_quality(vectors, documents, positives) for vectors in (direct, thought))
    return direct, after - before


def fit(
    embeddings: np.ndarray, gained: np.ndarray, sources: Sequence[str], seed: int
) -> tuple[Gate, dict[str, float]]:
    """Fits the gate; every source counts the same, however many queries it has.

    Args:
        embeddings: Direct embeddings, shape (queries, dimension).
        gained: What reasoning added, shape (queries,).
        sources: Where each query is from.
        seed: Chooses the queries that are kept apart.

    Returns:
        The gate, and on the queries kept apart: ``correlation`` of expected and true gain, ``share`` of the queries
        that are thought about, ``gain`` that they bring, and ``gain_of_all`` if all were.

    Raises:
        DataError: There are fewer than 40 queries.
    """
    from sklearn.linear_model import RidgeCV

    if len(gained) < LEAST_QUERIES:
        raise DataError(f"a gate needs at least {LEAST_QUERIES} queries, found {len(gained)}")
    counts = {name: sources.count(name) for name in set(sources)}
    weights = np.array([1 / counts[name] for name in sources])
    weights /= weights.sum()
    order = np.random.default_rng(seed).permutation(len(gained))
    apart, used = order[: len(order) // KEPT_APART_ONE_IN], order[len(order) // KEPT_APART_ONE_IN :]
    ridge = RidgeCV(alphas=PENALTIES).fit(embeddings[used], gained[used], sample_weight=weights[used] * len(used))
    expected = ridge.predict(embeddings[apart])
    best_first = np.argsort(-expected, kind="stable")
    true, weight = gained[apart][best_first], weights[apart][best_first] / weights[apart].sum()
    share, gain = np.cumsum(weight), np.cumsum(weight * true)
    knee = int(np.argmax(gain - share * gain[-1]))
    following = expected[best_first[min(knee + 1, len(apart) - 1)]]
    threshold = float((expected[best_first[knee]] + following) / 2)
    gate = Gate(tuple(float(f"{weight:.6g}") for weight in ridge.coef_), float(ridge.intercept_), threshold)
    return gate, {
        "correlation": float(np.corrcoef(expected, gained[apart])[0, 1]),
        "share": float(share[knee]),
        "gain": float(gain[knee]),
        "gain_of_all": float(gain[-1]),
    }


def calibrate(
    embedder: Any, sources: Mapping[str, Sequence[Record]], *, queries: int, documents: int, seed: int
) -> tuple[Gate, dict[str, float]]:
    """Measures up to ``queries`` records of every source among up to ``documents`` more of each; see :func:`fit`."""
    drawn: list[Record] = []
    more: list[str] = []
    names: list[str] = []
    for name, records in sources.items():
        order = random.Random(f"{seed}/{name}").sample(range(len(records)), len(records))
        drawn += [records[i] for i in order[:queries]]
        names += [name] * min(queries, len(records))
        others = [text for i in order[queries:] for text in records[i].positives]
        more += others[:documents]
    embeddings, gained = gains(embedder, drawn, more)
    for name in sources:
        mine = gained[np.array(names) == name]
        logger.info("%s: %d queries, mean gain %+.4f", name, len(mine), mine.mean())
    return fit(embeddings, gained, names, seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    parser = argparse.ArgumentParser(
        prog="python -m training.calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="checkpoint folder; adaptive.json is written into it")
    parser.add_argument("--data", type=Path, required=True, help="folder of JSONL(.gz) training records")
    parser.add_argument("--sources", nargs="+", help="names of files in it (default: all)")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], help="BEIR folders whose queries are left out")
    parser.add_argument("--queries", type=int, default=300, help="most queries of a source (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=2000,
                        help="most further documents of a source to rank among (default: %(default)s)")  # fmt: skip
    parser.add_argument("--document-length", type=int, default=128,
                        help="most tokens of a document, template included (default: %(default)s)")  # fmt: skip
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.queries < 1 or args.documents < 0:
        parser.error(
            f"--queries must be at least 1 and --documents at least 0, got {args.queries} and {args.documents}"
        )
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)

    from searchr3_embed import ReasoningEmbedder

    folder = Path(args.model)
    try:
        if not folder.is_dir():
            raise DataError(f"--model {args.model}: the gate is written into a checkpoint folder, and this is none")
        names = args.sources or source_names(args.data)
        loaded = load(dict.fromkeys(names, 1.0), args.data, exclude=args.exclude)
        embedder = ReasoningEmbedder(
            folder, device=args.device, model_kwargs={"dtype": args.dtype}, on_truncate="ignore"
        )
        embedder.max_seq_length = min(embedder.max_seq_length, args.document_length)
        gate, found = calibrate(
            embedder, loaded.sources, queries=args.queries, documents=args.documents, seed=args.seed
        )
        gate.save(folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"on queries kept apart: correlation {found['correlation']:.2f}; thinking about {100 * found['share']:.0f} % "
        f"of them brings {found['gain']:+.4f}, about all {found['gain_of_all']:+.4f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
