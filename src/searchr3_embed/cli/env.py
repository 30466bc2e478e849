"""``searchr3 env``: what a bug report needs."""

from __future__ import annotations

import argparse

from searchr3_embed.cli.arguments import add_cache_option
from searchr3_embed.cli.console import as_json

SUMMARY = "print versions, devices and paths, as a bug report needs them"
EPILOG = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_cache_option(parser)


def run(args: argparse.Namespace) -> None:
    """Print the report."""
    from searchr3_embed.cli import bug_report

    report = bug_report.report(args.cache_folder)
    if args.json:
        print(as_json(report))
        return
    for section, entries in report.items():
        print(f"{section}:")
        for name, value in entries.items():
            print(f"  {name}: {value}")
