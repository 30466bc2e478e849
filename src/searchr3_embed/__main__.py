"""``python -m searchr3_embed``, and what is installed as ``searchr3``."""

import sys

from searchr3_embed.interruption import run_module


def main() -> int:
    """Runs the command; returns the exit status."""
    return run_module("searchr3_embed.cli.main", "searchr3: interrupted")


if __name__ == "__main__":
    sys.exit(main())
