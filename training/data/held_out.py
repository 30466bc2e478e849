"""The queries that training keeps apart, as BEIR folders: what weights and settings are chosen by.

    python -m training.data.held_out --data DATA/train --source medquad fiqa_dev --out heldout
    python -m training.evaluate --model runs/text/model --model runs/rl/model --data heldout --out results

Keeps apart what ``training.sft`` and ``training.rl`` keep apart with the same numbers: the choice is by a hash of the
query. Their dev scores rank each such query among the answers of the others alone, which soon is too easy to tell two
models apart; here further documents of the source stand beside them.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from searchr3_embed import interruption
from training.data.beir import BeirData, write_beir
from training.data.lines import SKIP_BAD_HELP, DataError
from training.data.reading import load, source_name
from training.data.records import Record


def split_held_out(records: Sequence[Record], one_in: int, limit: int) -> tuple[list[Record], list[Record]]:
    """Splits by a hash of the query into (training, held out), so that the split never depends on order or seed."""
    held_out = [record for record in records if _hash(record.query) % one_in == 0][:limit]
    chosen = {record.query for record in held_out}
    return [record for record in records if record.query not in chosen], held_out


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def retrieval_set(source: str, records: Sequence[Record], documents: Sequence[str]) -> BeirData:
    """The records' queries against some documents, as a set to measure on.

    Args:
        source: Its name.
        records: Records of one query are one query with the positives of all.
        documents: What is ranked; equal texts count once. Positives that are not among them are not judged.

    Returns:
        The set, every judgement 1.
    """
    number = {text: f"d{i}" for i, text in enumerate(dict.fromkeys(documents))}
    queries = {query: f"q{i}" for i, query in enumerate(dict.fromkeys(record.query for record in records))}
    judged: dict[str, dict[str, int]] = {name: {} for name in queries.values()}
    for record in records:
        judged[queries[record.query]].update({number[text]: 1 for text in record.positives if text in number})
    return BeirData(
        source, {name: text for text, name in number.items()}, {name: text for text, name in queries.items()}, judged
    )


def held_out_set(
    source: str, records: Sequence[Record], *, one_in: int, limit: int, others: int, seed: int
) -> BeirData | None:
    """The held-out queries of a source with all their positives and some more documents of it.

    Args:
        source: Its name.
        records: All its records.
        one_in: One in so many is held out.
        limit: At most so many.
        others: At most so many positives of the training records join the corpus.
        seed: Draws them.

    Returns:
        The set; None where no query is held out.
    """
    training, held_out = split_held_out(records, one_in, limit)
    if not held_out:
        return None
    answers = dict.fromkeys(text for record in held_out for text in record.positives)
    rest = sorted({text for record in training for text in record.positives} - answers.keys())
    drawn = random.Random(f"{seed}/{source}").sample(rest, min(others, len(rest)))
    return retrieval_set(source, held_out, [*answers, *drawn])


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.data.held_out",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder of the sources that are given by name alone")
    parser.add_argument("--source", nargs="+", required=True,
                        help="as in a configuration: a name in --data, a path, a BEIR folder or hub:NAME")  # fmt: skip
    parser.add_argument("--exclude", type=Path, nargs="*", default=[],
                        help="BEIR folders whose queries are left out, as in training")  # fmt: skip
    parser.add_argument("--skip-bad", action="store_true", help=SKIP_BAD_HELP)
    parser.add_argument("--one-in", type=int, default=60, help="held_out_one_in of the run (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=60, help="held_out_limit of the run (default: %(default)s)")
    parser.add_argument("--others", type=int, default=250,
                        help="most further documents of a source (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="draws them (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for one set per source, made if missing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    args = arguments().parse_args(argv)
    try:
        for name, least in (("one_in", 1), ("limit", 1), ("others", 0)):
            if getattr(args, name) < least:
                option = "--" + name.replace("_", "-")
                raise DataError(f"{option} must be an integer >= {least}, got {getattr(args, name)}")
        folders = {spec: source_name(spec) for spec in args.source}
        if len(set(folders.values())) < len(args.source):
            raise DataError(f"two sources have one name: {', '.join(args.source)}")
        loaded = load(dict.fromkeys(args.source, 1.0), args.data, exclude=args.exclude, skip_bad=args.skip_bad)
        numbers = {"one_in": args.one_in, "limit": args.limit, "others": args.others, "seed": args.seed}
        written = 0
        for spec, records in loaded.sources.items():
            data = held_out_set(folders[spec], records, **numbers)
            if data is None:
                print(f"{spec}: no query is held out of {len(records)}; no set", file=sys.stderr)
                continue
            write_beir(data, args.out / data.name)
            print(f"{spec}: {len(data.queries)} queries, {len(data.documents)} documents", file=sys.stderr)
            written += 1
        if not written:
            raise DataError(f"no source has a held-out query; --one-in {args.one_in} keeps too few")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(interruption.run(main, "interrupted; the same command begins again, and nothing half written is left"))
