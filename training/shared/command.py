"""The command line of both stages."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import transformers


def run_command(train: Callable[[], Path]) -> int:
    """Runs a training and prints the folder of its result; returns the exit status, 2 for input that can't be used."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    transformers.utils.logging.set_verbosity_warning()
    try:
        folder = train()
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"error: {' '.join([str(error), *getattr(error, '__notes__', [])])}", file=sys.stderr)
        return 2
    print(folder)
    return 0
