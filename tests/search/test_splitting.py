"""Cutting texts at their headings and paragraphs: nothing lost, nothing too long, in linear time."""

from __future__ import annotations

import re
import time

import pytest

from searchr3_embed.search.splitting import split_text, word_count

MARKDOWN = """\
Before any heading.

# Guide

Intro, first line
and second line.

## Install

Run `pip install it`.

```sh
# not a heading
pip install it
```

## Use ##

Import it.

# Appendix
Right below the heading.
"""

RESTRUCTURED = """\
=====
Title
=====

Lead.

First part
----------

Text of the first part.

- an item
- another

Second part
-----------

Deeper
~~~~~~

Text below.
"""


def test_markdown_is_cut_at_its_headings() -> None:
    pieces = split_text(MARKDOWN)
    assert [(line, heading) for line, heading, _ in pieces] == [
        (1, ""),
        (5, "Guide"),
        (10, "Guide > Install"),
        (19, "Guide > Use"),
        (22, "Appendix"),
    ]
    assert "# not a heading" in pieces[2][2]
    lines = MARKDOWN.splitlines()
    assert all(lines[line - 1] == text.splitlines()[0] for line, _, text in pieces), "line numbers are right"


def test_underlined_headings_nest_by_order_of_appearance() -> None:
    assert [(heading, text.splitlines()[0]) for _, heading, text in split_text(RESTRUCTURED)] == [
        ("Title", "Lead."),
        ("Title > First part", "Text of the first part."),
        ("Title > Second part > Deeper", "Text below."),
    ]


def test_definitions_are_headings_only_when_asked() -> None:
    text = "String Methods\n**************\n\nAll.\n\nstr.split(sep=None)\n\n   Cuts.\n\nstr.strip()\n\n   Strips.\n"
    assert [heading for _, heading, _ in split_text(text)] == ["String Methods"]
    assert [heading for _, heading, _ in split_text(text, definitions=True)] == [
        "String Methods",
        "String Methods > str.split(sep=None)",
        "String Methods > str.strip()",
    ]


def test_no_passage_is_longer_than_allowed_and_no_word_is_lost() -> None:
    words = [f"word{number}" + "." * (number % 17 == 0) for number in range(1000)]
    paragraphs = [" ".join(words[start : start + 90]) for start in range(0, 1000, 90)]
    pieces = split_text("\n\n".join(paragraphs), max_words=50)

    assert all(word_count(text) <= 50 for _, _, text in pieces)
    assert " ".join(text for _, _, text in pieces).split() == words
    assert min(len(text.split()) for _, _, text in pieces[:5]) > 10, "no stubs"


@pytest.mark.parametrize("text", ["漢字" * 2000, "x" * 10_000, "一。" * 3000, "🙂" * 3000])
def test_text_without_spaces_is_cut_too(text: str) -> None:
    pieces = [piece for _, _, piece in split_text(text, max_words=100)]
    assert "".join(pieces) == text
    assert all(word_count(piece) <= 100 for piece in pieces)


@pytest.mark.parametrize("text", ["", "   \n\n \t\n", "# only a heading\n", "=====\n", "```\n"])
def test_split_text_takes_anything(text: str) -> None:
    assert all(piece for _, _, piece in split_text(text))


def test_headings_without_a_body_are_text_of_the_section_around_them() -> None:
    text = "# Todo\n\n## Buy oat milk\n\n## Call the dentist\n\n# Notes\n\nRivers flow.\n\n## Book the ferry"
    assert split_text(text) == [
        (3, "Todo", "## Buy oat milk\n\n## Call the dentist"),
        (9, "Notes", "Rivers flow."),
        (11, "Notes", "## Book the ferry"),
    ]
    assert split_text("Alone\n=====\n\n===\nTop\n===\n") == [(1, "", "Alone\n\nTop")]
    comments = "# a setting\n# another\nkey = value\n# the end\n"
    assert split_text(comments) == [(1, "", "# a setting"), (3, "another", "key = value"), (4, "", "# the end")]


@pytest.mark.parametrize("title", ["C#", "a # b", "x"])
def test_marks_around_a_heading_are_not_its_text(title: str) -> None:
    assert split_text(f"# {title} ##\nbody") == split_text(f"# {title}\nbody") == [(2, title, "body")]


def test_lines_are_those_of_an_editor() -> None:
    """Form feeds and exotic separators end no line, and a piece of a long paragraph has the line where it begins."""
    text = "one\x0c\x0btwo\x1c\u2028\x85three\n\n" + "\n".join(f"entry {number} is a line" for number in range(200))
    lines = text.split("\n")
    pieces = split_text(text, max_words=20)
    assert len(pieces) > 30
    assert all(piece.split("\n")[0] in lines[line - 1] for line, _, piece in pieces)
    assert [line for line, _, _ in pieces] == sorted({line for line, _, _ in pieces})


@pytest.mark.parametrize(
    "text",
    [
        "word " * 200_000,
        "x" * 1_000_000,
        "2026-11-27 worker 17 finished job 48213\n" * 25_000,
        "# x" + " " * 1_000_000 + "y",
        "# " + "#" * 1_000_000 + "x",
        "=" * 1_000_000 + "x",
        "漢字。" * 100_000,
    ],
    ids=["one line", "no blanks", "log", "blanks in a heading", "hashes", "underline", "Chinese"],
)
def test_a_megabyte_takes_less_than_a_second(text: str) -> None:
    start = time.process_time()
    pieces = split_text(text)
    assert time.process_time() - start < 1
    found = [word for _, heading, piece in pieces for word in re.findall(r"\w", heading + piece)]
    assert len(found) == len(re.findall(r"\w", text)), "nothing is lost"


@pytest.mark.parametrize(
    "block",
    [
        "```\n# no heading\n```",
        "~~~\n# no heading\n```\n~~~",
        "````md\n```\n# no heading\n```\n````",
        "```python title\n# no heading\n\n# none either\n```  ",
        "  ```\n  x\n# no heading\n  ```",
    ],
)
def test_what_is_fenced_is_no_heading_and_what_follows_is(block: str) -> None:
    pieces = split_text(f"# A\n{block}\n# B\nbody")
    assert [heading for _, heading, _ in pieces] == ["A", "B"]
    assert [line.rstrip() for line in block.split("\n") if line.strip()] == [
        line.rstrip() for line in pieces[0][2].split("\n") if line.strip()
    ] or block.startswith(" ")


@pytest.mark.parametrize("mark", ["```", "~~~~", "```python"])
def test_a_fence_that_nobody_closes_hides_no_heading(mark: str) -> None:
    pieces = split_text(f"# A\n{mark}\ncode\n# B\nbody")
    assert [heading for _, heading, _ in pieces] == ["A", "B"] and mark in pieces[0][2]


def test_fences_cost_no_more_than_their_length() -> None:
    text = "\n".join("`" * (3 + i % 5) + "x" for i in range(40_000))
    start = time.perf_counter()
    split_text(text)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "table",
    ["| a | b |\n|---|---|\n| 1 | 2 |", "a | b\n--- | ---\n1 | 2", "===  ===\na    b\n===  ===\n1    2\n===  ==="],
)
def test_the_head_of_a_table_is_text(table: str) -> None:
    assert split_text(f"# A\n\n{table}\n") == [(3, "A", table)]
