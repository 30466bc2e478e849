"""The tasks of MTEB for ``python -m training.evaluate --mteb``, run and scored by the mteb package.

The package is optional, and its tasks are downloaded. Retrieval tasks embed queries and documents as everywhere else,
so the two rows of our checkpoints differ in whether a query is thought about; in tasks that have no queries (STS,
clustering, classification ...) nothing is thought about, and the two rows agree. Results are kept in mteb's format.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchr3_embed.folders import replacing_files
from training.evaluate.cells import EvaluationError
from training.evaluate.mteb_models import MtebEncoder


def find_tasks(names: Sequence[str]) -> list[Any]:
    """The tasks of these names; nothing is downloaded yet.

    Args:
        names: Of tasks; ``NAME=FOLDER`` takes the task's data from a copy of its data set in a folder.

    Raises:
        EvaluationError: mteb is not installed, or has no such task, or a folder is none.
    """
    if not names:
        return []
    folders: dict[str, Path | None] = {}
    for spec in names:
        name, _, folder = spec.partition("=")
        if folder and not Path(folder).is_dir():
            raise EvaluationError(
                f"--mteb {spec!r}: {folder} is not a folder; a copy of the task's data set goes there"
            )
        folders[name] = Path(folder).resolve() if folder else None
    try:
        tasks = list(_mteb().get_tasks(tasks=list(folders)))
    except KeyError as error:
        raise EvaluationError(f"--mteb: {error.args[0]}; mteb.get_tasks() lists all names") from error
    for task in tasks:
        if (path := folders.get(task.metadata.name)) is not None:
            dataset = {**task.metadata.dataset, "path": str(path)}
            # The class's own metadata is everybody's.
            task.metadata = task.metadata.model_copy(update={"dataset": dataset})
    return tasks


def _mteb() -> Any:
    try:
        return importlib.import_module("mteb")
    except ImportError as error:
        raise EvaluationError(f"--mteb needs the mteb package ({error}); install it with: pip install mteb") from error


def measure(
    load: Callable[[], Any],
    task: Any,
    mode: str | None,
    budget: int | None,
    *,
    stored: Path | None,
    resume: bool,
    batch_size: int,
    progress: bool,
) -> float:
    """The main score of one model on one task.

    Args:
        load: Gives the model.
        task: One of ``find_tasks``.
        mode: "direct" or "reason" for our checkpoints, None for others.
        budget: Of reasoning tokens; None takes the checkpoint's.
        stored: File of the result in mteb's format; None keeps none.
        resume: Take the result from ``stored`` if it is there.
        batch_size: Texts per forward pass.
        progress: Show progress bars on stderr.

    Raises:
        EvaluationError: The task's data cannot be had.
    """
    mteb = _mteb()
    if resume and stored and stored.is_file():
        return float(mteb.TaskResult.from_disk(stored).get_score())
    if not task.data_loaded:
        try:
            task.load_data()
        except Exception as error:  # no network, no such data set, no access: many types of several libraries
            name = task.metadata.name
            raise EvaluationError(f"the data of the mteb task {name} cannot be loaded: {error}") from error
    model = load()
    results = mteb.evaluate(
        model if mode is None else MtebEncoder(model, reason=mode == "reason", max_reasoning_tokens=budget),
        task,
        co2_tracker=False,
        encode_kwargs={"batch_size": batch_size, "show_progress_bar": progress},
        cache=None,  # it goes by model names, which local folders share
        show_progress_bar=progress,
    )
    (result,) = results.task_results
    if stored:
        with replacing_files(stored.parent) as folder:
            result.to_disk(folder / stored.name)
    return float(result.get_score())


def summarise(tasks: Sequence[Any], scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What results.json holds under "mteb".

    Args:
        tasks: What was measured.
        scores: Label of a row -> name of a task -> main score.
    """
    return {
        "version": _mteb().__version__,
        "tasks": {task.metadata.name: {"metric": task.metadata.main_score} for task in tasks},
        "models": {label: {"tasks": row, "mean": float(np.mean(list(row.values())))} for label, row in scores.items()},
    }
