"""The sources of a run: the records to train on, and those that are kept apart to choose a checkpoint by."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from training.data.held_out import split_held_out
from training.data.reading import load
from training.data.records import Record
from training.shared.settings import RunArguments

Sources = dict[str, list[Record]]


def read_sources(args: RunArguments) -> tuple[Sources, Sources]:
    """Reads the sources that settings name; returns each source's records to train on, and those kept apart.

    Raises:
        DataError: A source cannot be found or read.
    """
    loaded = load(
        cast(dict, args.sources), Path(args.data) if args.data else None, exclude=[Path(p) for p in args.exclude or []]
    )
    training: Sources = {}
    held_out: Sources = {}
    for source, rows in loaded.sources.items():
        training[source], held_out[source] = split_held_out(rows, args.held_out_one_in, args.held_out_limit)
    return training, held_out
