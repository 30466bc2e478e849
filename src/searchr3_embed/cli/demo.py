"""``searchr3 demo``: six everyday questions to Python's own documentation, with and without thinking."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from searchr3_embed.cli.arguments import add_cache_option, add_model_options
from searchr3_embed.cli.console import note
from searchr3_embed.cli.search import indexed, with_length
from searchr3_embed.files import shorten

if TYPE_CHECKING:
    from searchr3_embed.search.index import Answer, Hit, PassageIndex

SUMMARY = "ask Python's own documentation six everyday questions, with and without reasoning"
EPILOG = """\
The documents have the encoder's vectors; only the questions think. The first run encodes some thousands of
entries; later runs find them in the cache folder."""

QUESTIONS = (
    "How do I parse a date string?",
    "How do I run another program and capture its output?",
    "How do I pick a random item from a list?",
    "How do I make a temporary folder that deletes itself?",
    "How do I cache the results of a function?",
    "How do I compare two text files and show the differences?",
)

# Of a kind that the packaged thinker was trained on; it knows little of Python, and says so.
FAMILIAR = (
    "What are the symptoms of glaucoma?",
    "How is asthma treated in children?",
    "How does vitamin D deficiency affect bones?",
)

_WIDEST = 120
_NARROWEST_SIDE_BY_SIDE = 76


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_model_options(parser)
    add_cache_option(parser)


def run(args: argparse.Namespace) -> None:
    """Index the documentation, then ask."""
    from searchr3_embed.search import python_docs

    passages = python_docs.read_stdlib()
    release = python_docs.python_release()
    note(f"reading the documentation of {release}: {len(passages):,} entries (encoded once, then kept)")
    ask_all(indexed(args, passages, release, release), max_reasoning_tokens=args.max_reasoning_tokens)


def ask_all(index: PassageIndex, *, top_k: int = 5, max_reasoning_tokens: int | None = None) -> None:
    """Ask the questions and print what was thought and found, then a summary.

    Args:
        index: The index over the standard library's documentation.
        top_k: Hits per question.
        max_reasoning_tokens: Budget of generated tokens, None for the model's default.
    """
    import statistics  # half the time of --help

    width = min(shutil.get_terminal_size((100, 24)).columns, _WIDEST)
    for reason in (True, False):  # the first call of anything pays for what later calls reuse
        index.ask("warm up", reason=reason, max_reasoning_tokens=max_reasoning_tokens)
    pairs = []
    for number, question in enumerate(QUESTIONS, 1):
        thought = index.ask(question, top_k=top_k, max_reasoning_tokens=max_reasoning_tokens)
        direct = index.ask(question, top_k=top_k, reason=False)
        pairs.append((thought, direct))
        print(f"\n{_heading(number, question, width)}")
        print("\n".join(comparison(thought, direct, width)))
    with_reasoning = statistics.median(1000 * thought.embed_seconds for thought, _ in pairs)
    without = statistics.median(1000 * direct.embed_seconds for _, direct in pairs)
    print("\n" + "-" * width)
    for line in (
        "*: found in this column only",
        f"{len(index.passages):,} entries, {index.origin}",
        f"median time per question: {with_reasoning:.0f} ms with reasoning, {without:.0f} ms without",
    ):
        print("\n".join(textwrap.wrap(line, width)))
    print("\n" + "\n".join(textwrap.wrap("what it thinks about questions of a kind that it was trained on:", width)))
    for one in index.embedder.reason(FAMILIAR, max_reasoning_tokens=max_reasoning_tokens):
        print("\n".join(textwrap.wrap(f"{one.text}  {with_length(one)}", width, subsequent_indent="  ")))


def _heading(number: int, question: str, width: int) -> str:
    start = f"-- {number}/{len(QUESTIONS)}  "
    return f"{start}{shorten(question, width - len(start) - 1)} ".ljust(width, "-")


def comparison(thought: Answer, direct: Answer, width: int) -> list[str]:
    """Lay out two answers to one question: side by side, or one below the other where there is no room.

    Args:
        thought: The answer with reasoning.
        direct: The answer without.
        width: Columns of the terminal.

    Returns:
        Lines no longer than ``width``.
    """
    lines: list[str] = []
    if thought.reasoning is not None:
        lines += textwrap.wrap(
            with_length(thought.reasoning), width, initial_indent="thinks:  ", subsequent_indent="         "
        )
    side_by_side = width >= _NARROWEST_SIDE_BY_SIDE
    column = (width - 3) // 2 if side_by_side else width
    columns = []
    for name, answer, other in (("with reasoning", thought, direct), ("without", direct, thought)):
        elsewhere = {hit.passage.id for hit in other.hits}
        heading = f"{name}, {1000 * answer.embed_seconds:.0f} ms"
        columns.append([heading, *_hit_lines(answer.hits, elsewhere, column)])
    if not side_by_side:
        return [*lines, *columns[0], *columns[1]]
    rows = max(map(len, columns))
    left, right = ([*lines_, *[""] * (rows - len(lines_))] for lines_ in columns)
    return [*lines, *(f"{a.ljust(column)}   {b}".rstrip() for a, b in zip(left, right, strict=True))]


def _hit_lines(hits: Sequence[Hit], elsewhere: set[str], width: int) -> list[str]:
    lines = []
    for hit in hits:
        mark = " " if hit.passage.id in elsewhere else "*"
        name = hit.passage.title or hit.passage.id
        lines.append(f"{hit.score:.3f}{mark} {shorten(name, width - 7)}")
        lines.append(f"       {shorten(hit.summary, width - 7)}")
    return lines
