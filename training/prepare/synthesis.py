"""Synthetic training records: a language model writes queries that a document answers, and passages that do not.

    python -m training.prepare.synthesis --corpus DATA/eval/scifact --out synthetic.jsonl --dry-run \\
        --base-url http://localhost:8000/v1 --model Qwen/Qwen3-32B
    python -m training.prepare.synthesis --corpus texts.jsonl.gz --limit 5000 --reasoning --out synthetic.jsonl \\
        --base-url http://localhost:8000/v1 --model Qwen/Qwen3-32B --max-tokens-total 20000000

Each document is one request. What comes back is checked before it is a record: the JSON must be readable, a query
that nearly equals an earlier one (or an evaluation query, --exclude) is dropped, and under a reference embedder the
document must be closer to the query than each negative: one that is closer may well answer the query, and is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from searchr3_embed.adapt import chat_client as chat
from searchr3_embed.adapt.same_text import document_key, first_of_kind
from searchr3_embed.adapt.synthesis import (
    SYSTEM_PROMPT,
    Triple,
    beaten_negatives,
    conversations,
    parse_triples,
    sample,
)
from training.data.beir import document_text
from training.data.lines import SKIP_BAD_HELP, DataError, parse_json, parse_lines
from training.data.overlap import Guard
from training.data.records import Record, clean, stem_of, write_records
from training.evaluate.models import load_embedder
from training.prepare import chat_command as command

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def read_corpus(path: Path, least_words: int, counts: Counter[str], skip_bad: Counter[str] | None = None) -> list[str]:
    """Reads the documents of a BEIR-layout folder or of a JSONL(.gz) file of texts, short and repeated ones left out.

    Args:
        path: A folder with corpus.jsonl[.gz], or a file whose lines are ``{"text", "title"}`` (title optional) or
            JSON strings.
        least_words: Shorter documents are left out.
        counts: Counts what is left out.
        skip_bad: Counts lines that are no documents and leaves them out; None raises the first error.

    Raises:
        DataError: There is no such file, a line is no document, or nothing is left.
    """
    files = [path / "corpus.jsonl.gz", path / "corpus.jsonl"] if path.is_dir() else [path]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise DataError(f"{path}: expected a folder with corpus.jsonl or corpus.jsonl.gz, or a JSONL file of texts")
    documents: dict[str, str] = {}
    for text in parse_lines(file, _document, skip_bad):
        key = document_key(text)
        if len(key.split()) < least_words:
            counts["document too short"] += 1
        elif key in documents:
            counts["repeated document"] += 1
        else:
            documents[key] = text
    if not documents:
        raise DataError(f"{file}: no document of at least {least_words} words")
    return list(documents.values())


def _document(where: str, line: str) -> str:
    value = parse_json(where, line)
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise DataError(f'{where}: expected {{"text": "...", "title": "..."}} (title optional) or a JSON string')
    return document_text(where, value)


def assemble(
    documents: Sequence[str], answers: Sequence[list[Triple] | None], source: str, guard: Guard, counts: Counter[str]
) -> list[Record]:
    """Makes records of the triples, without repeated queries and without those close to an evaluation query."""
    pairs = [(text, triple) for text, some in zip(documents, answers, strict=True) for triple in some or ()]
    records = []
    for (text, triple), new in zip(pairs, first_of_kind([triple.query for _, triple in pairs]), strict=True):
        if not new:
            counts["query close to an earlier one"] += 1
        elif guard.match(triple.query):
            counts["query close to an evaluation query"] += 1
        elif record := clean(Record(triple.query, (text,), triple.negatives, source, triple.reasoning), counts):
            records.append(record)
    return records


def beaten(records: Sequence[Record], model: SentenceTransformer, counts: Counter[str]) -> list[Record]:
    """The retrieval check: keeps the negatives that are farther from the query than the positive is.

    Args:
        records: Each with one positive.
        model: The reference embedder.
        counts: Counts negatives that are at least as close, and records that have none left.
    """
    if not records:
        return []
    queries, negatives = [record.query for record in records], [record.negatives for record in records]
    beaten_by_it = beaten_negatives(queries, [record.positives[0] for record in records], negatives, model, counts)
    kept = []
    for record, good in zip(records, beaten_by_it, strict=True):
        if good:
            kept.append(dataclasses.replace(record, negatives=good))
        else:
            counts["record without a negative that the positive beats"] += 1
    return kept


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    about, example, *rest = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare.synthesis",
        description="\n\n".join([about, *rest]),
        epilog=f"examples:\n{example}\n\n{command.HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--corpus",
        required=True,
        type=Path,
        help='BEIR-layout folder, or JSONL(.gz) file whose lines are {"text", "title"} (title optional) or strings',
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="records, .jsonl or .jsonl.gz")
    parser.add_argument("--skip-bad", action="store_true", help=SKIP_BAD_HELP)
    parser.add_argument("--limit", type=int, help="most documents, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of that draw (default: 0)")
    parser.add_argument("--least-words", type=int, default=10, help="shorter documents are left out (default: 10)")
    parser.add_argument("--most-words", type=int, default=300, help="of a document that are sent (default: 300)")
    parser.add_argument("--queries", type=int, default=2, help="per document (default: 2)")
    parser.add_argument("--negatives", type=int, default=2, help="per query (default: 2)")
    parser.add_argument("--reasoning", action="store_true", help="ask for the reasoning of each query too")
    parser.add_argument(
        "--system-prompt",
        type=Path,
        metavar="FILE",
        help="another prompt than ours (see --dry-run); it must ask for the same JSON, {queries} and {negatives} in "
        "it are filled in",
    )
    parser.add_argument(
        "--embedder",
        default="teacher",
        metavar="NAME",
        help="for the retrieval check: a SentenceTransformer (folder or hub id), 'teacher' (all-MiniLM-L6-v2, "
        "default), or 'none' for no check",
    )
    parser.add_argument(
        "--exclude", nargs="+", type=Path, default=[], metavar="DIR", help="BEIR-layout folders of evaluation queries"
    )
    command.add_arguments(parser, temperature=0.7, max_tokens=2048)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = arguments().parse_args(argv)
    return command.guarded(lambda: _synthesise(args))


def _synthesise(args: argparse.Namespace) -> int:
    for name in ("limit", "least_words", "most_words", "queries", "negatives"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    endpoint, store = command.endpoint_of(args), command.store_of(args)
    guard = Guard.of_folders(args.exclude)
    counts: Counter[str] = Counter()
    corpus = read_corpus(args.corpus, args.least_words, counts, counts if args.skip_bad else None)
    documents = sample(corpus, args.limit, args.seed)
    prompt = args.system_prompt.read_text(encoding="utf-8").strip() if args.system_prompt else SYSTEM_PROMPT
    asked = conversations(documents, prompt, args.queries, args.negatives, args.reasoning, args.most_words)
    if args.dry_run:
        print(command.plan(asked, endpoint, store))
        return 0
    # Loaded first, for a wrong name is better told before the money is spent.
    embedder = None if args.embedder == "none" else load_embedder(args.embedder)
    answers = chat.ask(asked, parse_triples, endpoint, store)
    print(answers.summary())
    given = [len(some) for some in answers.values if some is not None]
    counts["triple broken, or not given in a readable answer"] += sum(max(0, args.queries - count) for count in given)
    name = stem_of(args.corpus.resolve())
    records = assemble(documents, answers.values, f"synthetic-{name}", guard, counts)
    if embedder is not None:
        records = beaten(records, embedder, counts)
    for reason, count in (+counts).most_common():
        print(f"left out: {count} {reason}")
    if records:
        write_records(args.out, records)
        negatives = sum(len(record.negatives) for record in records)
        print(f"{args.out}: {len(records)} records with {negatives} negatives from {len(documents)} documents")
    elif not answers.left:
        raise chat.LLMError(f"nothing is left to write; the answers are in {store}")
    return command.BUDGET_SPENT if answers.left else 0


if __name__ == "__main__":
    sys.exit(main())
