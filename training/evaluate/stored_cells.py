"""What ``--resume`` reuses: a file per model and set in the output folder, with a key of all that decides it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from searchr3_embed.files import first_line, write_json
from training.evaluate.cells import Cell, EvaluationError, Settings
from training.evaluate.models import System


def stored_cells(
    out: Path | None, group: Sequence[System], folder: Path, settings: Settings, resume: bool
) -> tuple[dict[str, Cell], dict[str, str]]:
    """What ``--resume`` can reuse for one set, by label, and the keys under which cells are stored.

    Raises:
        EvaluationError: A stored cell cannot be read.
    """
    if out is None:
        return {}, {}
    keys = {system.label: _hash([model_key(system, settings), _stamp(folder)]) for system in group}
    if not resume:
        return {}, keys
    found = {label: _read_cell(_cell_file(out, label, folder.resolve().name), key) for label, key in keys.items()}
    return {label: cell for label, cell in found.items() if cell is not None}, keys


def model_key(system: System, settings: Settings) -> str:
    """Changes whenever the vectors may: with the model's files, the mode, or the settings."""
    model_folder = Path(system.source)
    if system.kind == "ours":
        from searchr3_embed.checkpoint.locate import PACKAGED, packaged_folder

        model_folder = packaged_folder() if system.source == PACKAGED else model_folder
    return _hash([asdict(system), _stamp(model_folder), asdict(settings)])


def write_cell(out: Path, cell: Cell, key: str) -> None:
    """Keeps a cell under its key."""
    write_json(_cell_file(out, cell.model, cell.set), {"key": key, "cell": asdict(cell)}, indent=None)


def _read_cell(path: Path, key: str) -> Cell | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Cell(**stored["cell"]) if stored["key"] == key else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path} is damaged ({first_line(error)}); delete it, then resume") from error


def _cell_file(out: Path, label: str, set_name: str) -> Path:
    name = f"{label}--{set_name}"
    readable = re.sub(r"[^\w.-]+", "_", name)[-100:]
    return out / "cells" / f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.json"


def _stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a folder's files; empty for a name that is no folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
