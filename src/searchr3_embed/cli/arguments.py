"""What the commands' arguments have in common: the parser, its errors, options of several commands."""

from __future__ import annotations

import argparse
from typing import NoReturn

JSONL_SUFFIXES = (".jsonl", ".ndjson")
STDIN = "-"


class CommandError(ValueError):
    """The command cannot be carried out as given. The message is one sentence."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is a --help away."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage.

        Raises:
            CommandError: Always.
        """
        unknown = message.startswith(("unrecognized arguments: -", "the following arguments are required"))
        hint = "; a text that begins with - goes after --" if unknown else ""
        raise CommandError(f"{message} (see {self.prog} --help{hint})")


def add_model_options(parser: argparse.ArgumentParser, *, reason: str | None = None) -> None:
    """Add the choice of a model and how to run it.

    Args:
        parser: Where to add them.
        reason: Help for --reason and --no-reason; without it there is no such option.
    """
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="searchr3",
        help="searchr3 (packaged, works offline), searchr3-small, searchr3-large, a folder or a hub id "
        "(default: searchr3)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: the best there is)")
    group.add_argument("--batch-size", type=positive, default=32, metavar="N", help="texts at a time (default: 32)")
    group.add_argument(
        "--max-reasoning-tokens", type=not_negative, metavar="N", help="budget of a reasoning (default: the model's)"
    )
    if reason:
        group.add_argument("--reason", action=argparse.BooleanOptionalAction, default=None, help=reason)


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    """Add --cache-folder."""
    parser.add_argument("--cache-folder", metavar="FOLDER", help="where document vectors are kept (see searchr3 env)")


def add_field_option(parser: argparse.ArgumentParser) -> None:
    """Add --field."""
    parser.add_argument("--field", default="text", help="field of a JSONL record that holds the text (default: text)")


def add_skip_bad_option(parser: argparse.ArgumentParser) -> None:
    """Add --skip-bad."""
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out lines that cannot be used and count them; without it the first one is an error",
    )


def positive(text: str) -> int:
    """An integer from 1, for ``type=``."""
    return _integer(text, 1)


def not_negative(text: str) -> int:
    """An integer from 0, for ``type=``."""
    return _integer(text, 0)


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"expected an integer >= {least}, got {text!r}")
    return value
