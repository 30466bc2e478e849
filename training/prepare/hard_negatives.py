"""Hard negatives: for every query the documents of its source that look right and are not.

    python -m training.prepare.hard_negatives --data DATA/train --source scifact fiqa_dev --out DATA/mined

Each source is mined on its own, with sentence-transformers' ``mine_hard_negatives``: all its documents are ranked for
every query, and the best that are not known to be right are taken. Among the best ranked there are right answers that
nobody marked. So a negative must score at least ``--relative-margin`` (5 % as in NV-Retriever, arXiv:2407.15831) below
the weakest positive of its query, and is never a positive of any record with that query. Labelled negatives stay, and
come first.

What the margin is worth: of the 299 queries of fiqa_dev with several positives all positives but one were hidden, and
the teacher mined. Hidden positives were 36 % of the negatives without a margin, 15 % at 0.05, 13 % at 0.1, and 7 % at
0.2, for 4.0, 3.8, 3.8 and 3.7 negatives a query.

Results are cached by the content of records, settings and model; started again with the same command, the sources
that are done take no time. The output holds records as training.data.records reads them, under
the same names: training with ``DATA/mined`` as the folder takes them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from searchr3_embed import interruption
from searchr3_embed.adapt.same_text import document_key, query_key
from searchr3_embed.files import write_json
from training.data.lines import SKIP_BAD_HELP
from training.data.reading import load, source_name
from training.data.records import Record, write_records
from training.evaluate.cells import Settings
from training.evaluate.models import load_model, parse_model

logger = logging.getLogger("training.prepare.hard_negatives")

# Queries that are compared with all documents at once; bounds memory: 1,024 x documents scores.
QUERIES_AT_ONCE = 1024


@dataclass(frozen=True)
class MinerSettings:
    """What a negative must be; the names are those of ``mine_hard_negatives``.

    Attributes:
        num_negatives: Most negatives that are mined for a query.
        relative_margin: Part of the weakest positive's score by which a negative must be below it; None for any score.
        max_score: Highest score of a negative; None for any.
        min_score: Lowest score of a negative; None for any.
        range_min: Best-ranked documents that are skipped, positives among them.
        range_max: Rank after which nothing is looked at.
    """

    num_negatives: int = 4
    relative_margin: float | None = 0.05
    max_score: float | None = None
    min_score: float | None = None
    range_min: int = 0
    range_max: int = 100


def mine(
    records: Sequence[Record],
    model: SentenceTransformer,
    settings: MinerSettings | None = None,
    cache: Path | None = None,
    batch_size: int = 64,
) -> list[Record]:
    """Adds mined negatives to records that share a source.

    Args:
        records: Their positives and negatives are the documents that negatives are chosen from.
        model: Ranks the documents; a ReasoningEmbedder thinks about every query first.
        settings: What a negative must be.
        cache: Folder of earlier results; None keeps none.
        batch_size: Texts per forward pass.

    Returns:
        The records in their order, labelled negatives first, then the mined ones, the hardest first; those of a query
        for which nothing passes the filters stay as they are.

    Raises:
        ValueError: The settings cannot be met.
    """
    settings = settings or MinerSettings()
    if not records:
        return []
    path = cache / f"{_digest(records, model, settings)}.json" if cache else None
    if path and path.is_file():
        logger.info("taken from the cache: %s", path)
        mined = json.loads(path.read_text(encoding="utf-8"))
    else:
        mined = _mine(records, model, settings, batch_size)
        if path:
            write_json(path, mined, indent=None)
    return [
        replace(record, negatives=tuple(dict.fromkeys((*record.negatives, *negatives))))
        for record, negatives in zip(records, mined, strict=True)
    ]


def _mine(
    records: Sequence[Record], model: SentenceTransformer, settings: MinerSettings, batch_size: int
) -> list[list[str]]:
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    # The miner takes pairs, and leaves out what is a positive of the very same query in another pair. It compares
    # texts exactly, so copies that differ in nothing that matters are spelt one way.
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    pairs: dict[tuple[str, str], None] = {}
    for record in records:
        query = queries.setdefault(query_key(record.query), record.query)
        for text in record.positives:
            pairs[query, documents.setdefault(document_key(text), text)] = None
        for text in record.negatives:
            documents.setdefault(document_key(text), text)
    anchors, answers = zip(*pairs, strict=True)
    with contextlib.redirect_stdout(sys.stderr):  # the miner prints its statistics
        triplets = mine_hard_negatives(
            Dataset.from_dict({"query": anchors, "positive": answers}),
            model,
            corpus=list(documents.values()),
            batch_size=batch_size,
            faiss_batch_size=QUERIES_AT_ONCE,
            **asdict(settings),
        )
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for query, text in zip(triplets["query"], triplets["negative"], strict=True):
        if query_key(text) != query_key(query):  # a document that only repeats the query is no wrong answer
            found[query][text] = None
    return [list(found[queries[query_key(record.query)]]) for record in records]


def _digest(records: Sequence[Record], model: SentenceTransformer, settings: MinerSettings) -> str:
    """Of everything that a result depends on: the texts, the settings, and the model's weights and prompts."""
    digest = hashlib.sha256(json.dumps(asdict(settings)).encode())
    for record in records:
        digest.update(json.dumps([record.query, record.positives, record.negatives]).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    conversation: Any = getattr(model, "conversation", None)
    prompts = (model.prompts, model.default_prompt_name, conversation and conversation.prompts)
    digest.update(f"{type(model).__name__} {model} {model.similarity_fn_name} {prompts}".encode())
    return digest.hexdigest()


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare.hard_negatives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder in which sources are looked up by name")
    parser.add_argument(
        "--source",
        nargs="+",
        required=True,
        metavar="SPEC",
        help="names in --data, JSONL(.gz) files, BEIR folders (FOLDER[:SPLIT]) or hub:NAME[:SPLIT]",
    )
    parser.add_argument(
        "--model",
        default="teacher",
        metavar="SPEC",
        help="what ranks the documents: 'teacher' (all-MiniLM-L6-v2), st:NAME for any SentenceTransformer, or one of "
        "our checkpoints, which thinks before it embeds a query; st:FOLDER takes ours without thinking "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="a folder, which gets NAME.jsonl.gz for every source; or, for one source, a .jsonl or .jsonl.gz file",
    )
    parser.add_argument(
        "--exclude",
        type=Path,
        nargs="+",
        default=[],
        help="BEIR folders, or folders of them, whose queries are dropped from the records",
    )
    parser.add_argument("--skip-bad", action="store_true", help=SKIP_BAD_HELP)
    _miner_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=64, help="texts per forward pass (default: %(default)s)")
    parser.add_argument("--device", help="where the model runs, for example cuda (default: chosen)")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/negatives"), help="folder of earlier results (default: %(default)s)"
    )
    return parser


def _miner_arguments(parser: argparse.ArgumentParser) -> None:
    """What decides which documents become negatives, see :class:`MinerSettings`."""
    default = MinerSettings()
    parser.add_argument(
        "--num-negatives", type=int, default=default.num_negatives, help="most a query gets (default: %(default)s)"
    )
    parser.add_argument(
        "--relative-margin",
        type=float,
        default=default.relative_margin,
        help="a negative scores at least this part below the weakest positive (default: %(default)s); more is safer "
        "and finds fewer",
    )
    parser.add_argument("--max-score", type=float, help="highest score of a negative (default: any)")
    parser.add_argument("--min-score", type=float, help="lowest score of a negative (default: any)")
    parser.add_argument(
        "--range-min", type=int, default=default.range_min, help="best ranks to skip (default: %(default)s)"
    )
    parser.add_argument(
        "--range-max", type=int, default=default.range_max, help="last rank to look at (default: %(default)s)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    args = arguments().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        settings = MinerSettings(**{name: getattr(args, name) for name in asdict(MinerSettings())})
        paths = _output_paths(args.source, args.out)
        loaded = load(dict.fromkeys(args.source, 1.0), args.data, exclude=args.exclude, skip_bad=args.skip_bad)
        model = load_model(parse_model(args.model)[0], Settings(), args.device)
        for spec, records in loaded.sources.items():
            started = time.perf_counter()
            logger.info("%s: mining for %d records", spec, len(records))
            mined = mine(records, model, settings, args.cache, args.batch_size)
            write_records(paths[spec], mined)
            logger.info(
                "%s: %d negatives mined, %d of %d records without any, %.1f s; wrote %s",
                spec,
                sum(len(record.negatives) for record in mined) - sum(len(record.negatives) for record in records),
                sum(not record.negatives for record in mined),
                len(mined),
                time.perf_counter() - started,
                paths[spec],
            )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _output_paths(specs: Sequence[str], out: Path) -> dict[str, Path]:
    if out.name.endswith((".jsonl", ".jsonl.gz")):
        if len(specs) > 1:
            raise ValueError(f"--out {out}: one file takes one source, found {len(specs)}; name a folder for several")
        return {specs[0]: out}
    names = [source_name(spec) for spec in specs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--source: several are called {repeated[0]!r}, and would overwrite each other in {out}")
    return {spec: out / f"{name}.jsonl.gz" for spec, name in zip(specs, names, strict=True)}


if __name__ == "__main__":
    sys.exit(interruption.run(main, "interrupted; the same command goes on; with --cache it keeps the vectors"))
