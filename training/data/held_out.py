"""The queries that training keeps apart, as BEIR folders: what weights and settings are chosen by.

    python -m training.data.held_out --data DATA/train --source medquad fiqa_dev --out heldout
    python -m training.evaluate --model runs/text/model --model runs/rl/model --data heldout --out results

Keeps apart what ``training.sft`` and ``training.rl`` keep apart with the same numbers: the choice is by a hash of the
query. Their dev scores rank each such query among the answers of the others alone, which soon is too easy to tell two
models apart; here further documents of the source stand beside them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from searchr3_embed.files import replacing
from training.data.beir import BeirData, DataError
from training.data.records import HUB, Record, load, split_held_out, stem_of


def retrieval_set(
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
        The set, every judgement 1; None where no query is held out.
    """
    training, held_out = split_held_out(records, one_in, limit)
    if not held_out:
        return None
    answers = dict.fromkeys(text for record in held_out for text in record.positives)
    rest = sorted({text for record in training for text in record.positives} - answers.keys())
    texts = [*answers, *random.Random(f"{seed}/{source}").sample(rest, min(others, len(rest)))]
    number = {text: f"d{i}" for i, text in enumerate(texts)}
    # Records of one query are one query with the positives of all.
    queries = {query: f"q{i}" for i, query in enumerate(dict.fromkeys(record.query for record in held_out))}
    judged: dict[str, dict[str, int]] = {}
    for record in held_out:
        judged.setdefault(queries[record.query], {}).update({number[text]: 1 for text in record.positives})
    return BeirData(
        source, {name: text for text, name in number.items()}, {name: q for q, name in queries.items()}, judged
    )


def write_beir(data: BeirData, folder: Path) -> None:
    """Writes a set in the layout of :mod:`training.data.beir`; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in (("corpus.jsonl", data.documents), ("queries.jsonl", data.queries)):
        with replacing(folder / name) as file:
            for identifier, text in texts.items():
                file.write((json.dumps({"_id": identifier, "text": text}, ensure_ascii=False) + "\n").encode())
    with replacing(folder / "qrels.tsv") as file:
        file.write(b"query-id\tcorpus-id\tscore\n")
        for query, judged in data.qrels.items():
            file.write("".join(f"{query}\t{document}\t{score}\n" for document, score in judged.items()).encode())


def _name(spec: str) -> str:
    """The folder for a source: its name without where it lies, its ending, and the split behind a colon."""
    return stem_of(Path(spec.removeprefix(HUB).split(":")[0]))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
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
    parser.add_argument("--one-in", type=int, default=60, help="held_out_one_in of the run (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=60, help="held_out_limit of the run (default: %(default)s)")
    parser.add_argument("--others", type=int, default=250,
                        help="most further documents of a source (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="draws them (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for one set per source, made if missing")
    args = parser.parse_args(argv)
    try:
        for name, least in (("one_in", 1), ("limit", 1), ("others", 0)):
            if getattr(args, name) < least:
                option = "--" + name.replace("_", "-")
                raise DataError(f"{option} must be an integer >= {least}, got {getattr(args, name)}")
        folders = {spec: _name(spec) for spec in args.source}
        if len(set(folders.values())) < len(args.source):
            raise DataError(f"two sources have one name: {', '.join(args.source)}")
        loaded = load(dict.fromkeys(args.source, 1.0), args.data, exclude=args.exclude)
        numbers = {"one_in": args.one_in, "limit": args.limit, "others": args.others, "seed": args.seed}
        written = 0
        for spec, records in loaded.sources.items():
            data = retrieval_set(folders[spec], records, **numbers)
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
    sys.exit(main())
