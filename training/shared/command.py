"""The command line of both stages."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from searchr3_embed.interruption import STATUS, heard


def run_command(train: Callable[[], Path]) -> int:
    """Runs a training and prints the folder of its result; returns the exit status, 2 for input that can't be used."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    transformers.utils.logging.set_verbosity_warning()
    try:
        with heard():
            folder = train()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return STATUS
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"error: {' '.join([str(error), *getattr(error, '__notes__', [])])}", file=sys.stderr)
        return 2
    finally:
        leave_process_group()
    print(folder)
    return 0


def leave_process_group() -> None:
    """Ends the threads by which the processes of a run talk to each other.

    A process that exits while they run is aborted by the C++ runtime now and then, after all its work is done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
