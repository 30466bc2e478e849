"""``searchr3 search``: a folder, a file or Python's documentation, by meaning."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchr3_embed.cli.arguments import (
    JSONL_SUFFIXES,
    CommandError,
    add_cache_option,
    add_field_option,
    add_model_options,
    add_skip_bad_option,
    positive,
)
from searchr3_embed.cli.console import as_json, note, questions, reasoning_text
from searchr3_embed.cli.model import load
from searchr3_embed.files import printable, shorten

if TYPE_CHECKING:
    from searchr3_embed.reasoning_trace import Reasoning
    from searchr3_embed.search.index import Answer, PassageIndex
    from searchr3_embed.search.passages import Passage

SUMMARY = "search a folder, a file or Python's documentation by meaning"
EPILOG = """\
examples:
  searchr3 search docs "how do I install it?"           *.md, *.rst, *.txt ... in a folder, recursively
  searchr3 search corpus.jsonl "first question" "second question" -k 10
  searchr3 search --stdlib "parse a date string"        the documentation of this Python
  searchr3 search --stdlib - < questions.txt            one question a line

JSONL records hold `text` and optionally `id` and `title`. The vectors of a source are kept in the cache
folder: the next search encodes only what is new or changed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.usage = "searchr3 search [options] (SOURCE | --stdlib) QUESTION [QUESTION ...]"
    parser.add_argument(
        "words",
        nargs="+",
        metavar="SOURCE QUESTION",
        help="a folder of text files, a text file or a .jsonl file; then one or more questions, or - for one question "
        "a line from stdin",
    )
    parser.add_argument("--stdlib", action="store_true", help="search Python's own documentation instead of a SOURCE")
    parser.add_argument("-k", "--top-k", type=positive, default=5, metavar="N", help="hits per question (default: 5)")
    add_field_option(parser)
    add_skip_bad_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object per question")
    add_model_options(parser, reason="think about the question before embedding it (default)")
    add_cache_option(parser)


def run(args: argparse.Namespace) -> None:
    """Read the source, index it, answer the questions."""
    words = list(args.words)
    source = None if args.stdlib else words.pop(0)
    if not words:
        raise CommandError(f"no question for {source!r}: give one or more, or - to read them from standard input")
    passages, identity = _read_source(source, args.field, args.skip_bad)
    index = indexed(args, passages, identity, "the standard library" if source is None else source)
    for question in questions(words):
        answer = index.ask(
            question,
            top_k=args.top_k,
            reason=args.reason is not False,
            max_reasoning_tokens=args.max_reasoning_tokens,
        )
        if args.json:
            print(as_json(_answer_record(answer)), flush=True)
        else:
            _print_answer(answer, len(passages))


def _read_source(source: str | None, field: str, skip_bad: bool) -> tuple[list[Passage], str]:
    """The passages of a source, None for the standard library, and a name that tells it from other sources."""
    from searchr3_embed.search import passages, python_docs

    if source is None:
        return python_docs.read_stdlib(), python_docs.python_release()
    path = Path(source)
    identity = os.path.realpath(path)
    if path.is_dir():
        return passages.read_folder(path), identity
    if not path.exists():
        raise CommandError(f"{source}: no such folder or file")
    if path.suffix.lower() in JSONL_SUFFIXES:
        return passages.read_jsonl(path, field=field, skip_bad=skip_bad), f"{identity}#{field}"
    if path.suffix.lower() in passages.TEXT_SUFFIXES:
        return passages.read_file(path), identity
    accepted = ", ".join([*JSONL_SUFFIXES, *sorted(passages.TEXT_SUFFIXES)])
    raise CommandError(f"{source}: expected a folder or a file ending in {accepted}")


def indexed(args: argparse.Namespace, passages: list[Passage], identity: str, name: str) -> PassageIndex:
    """Load the model and index passages, with a progress bar where it takes long.

    Args:
        args: Options of the model and the cache.
        passages: What to index.
        identity: Tells this source from others in the cache.
        name: What the note at the end calls it.
    """
    embedder = load(args.model, device=args.device, verbose=args.verbose)
    from tqdm import tqdm

    from searchr3_embed.search.index import build_index
    from searchr3_embed.search.vector_cache import default_cache_folder

    with tqdm(total=len(passages), desc="indexing", unit=" passages", delay=1, leave=False, file=sys.stderr) as bar:
        index = build_index(
            embedder,
            passages,
            source=identity,
            cache_folder=args.cache_folder or default_cache_folder(),
            batch_size=args.batch_size,
            progress=bar.update,
        )
    note(f"{len(passages):,} passages of {name}, {index.origin}")
    return index


def _print_answer(answer: Answer, passages: int) -> None:
    width = max(shutil.get_terminal_size((100, 24)).columns, 40)
    print(f"\nquestion:  {answer.question}")
    if answer.reasoning is not None:
        print(f"reasoning: {with_length(answer.reasoning)}")
    for rank, hit in enumerate(answer.hits, 1):
        print(f"{rank:3}. {hit.score:.3f}  {printable(hit.passage.id)}" + _title(hit.passage))
        print(f"            {shorten(hit.summary, width - 12)}")
    verb = "think and embed" if answer.reasoning is not None else "embed"
    milliseconds = f"{1000 * answer.embed_seconds:.0f} ms to {verb}"
    print(
        f"time:      {milliseconds}, {1000 * answer.search_seconds:.1f} ms to search {passages:,} passages", flush=True
    )


def _title(passage: Passage) -> str:
    return f"  ({shorten(passage.title, 100)})" if passage.title and passage.title not in passage.id else ""


def with_length(reasoning: Reasoning) -> str:
    """What was thought, how long it is, and whether it was cut."""
    if reasoning.finish_reason == "nothing_to_add":
        return reasoning_text(reasoning)
    cut = "" if reasoning.finish_reason == "embed_token" else ", cut at the budget"
    return f"{reasoning_text(reasoning)}  [{reasoning.reasoning_tokens} tokens{cut}]"


def _answer_record(answer: Answer) -> dict[str, Any]:
    record: dict[str, Any] = {"question": answer.question}
    if answer.reasoning is not None:
        record |= {
            "reasoning": answer.reasoning.reasoning,
            "finish_reason": answer.reasoning.finish_reason,
            "reasoning_tokens": answer.reasoning.reasoning_tokens,
        }
    record |= {"embed_seconds": round(answer.embed_seconds, 6), "search_seconds": round(answer.search_seconds, 6)}
    record["hits"] = [
        {
            "rank": rank,
            "score": round(hit.score, 6),
            "id": hit.passage.id,
            "title": hit.passage.title,
            "text": hit.passage.text,
        }
        for rank, hit in enumerate(answer.hits, 1)
    ]
    return record
