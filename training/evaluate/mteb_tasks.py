"""The tasks of MTEB for ``python -m training.evaluate --mteb``, run and scored by the mteb package.

The package is optional, and its tasks are downloaded. Retrieval tasks embed queries and documents as everywhere else,
so the two rows of our checkpoints differ in whether a query is thought about; in tasks that have no queries (STS,
clustering, classification ...) nothing is thought about, and the two rows agree. Results are kept in mteb's format.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchr3_embed.files import replacing_files
from training.evaluate.cells import EvaluationError


def find_tasks(names: Sequence[str]) -> list[Any]:
    """The tasks of these names; nothing is downloaded yet.

    Raises:
        EvaluationError: mteb is not installed, or has no such task.
    """
    if not names:
        return []
    try:
        return list(_mteb().get_tasks(tasks=list(dict.fromkeys(names))))
    except KeyError as error:
        raise EvaluationError(f"--mteb: {error.args[0]}; mteb.get_tasks() lists all names") from error


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
    with _queries_in_mode(model, mode, budget):
        results = mteb.evaluate(
            model,
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


@contextlib.contextmanager
def _queries_in_mode(model: Any, mode: str | None, max_reasoning_tokens: int | None) -> Iterator[None]:
    """Lets ``encode_query`` of one of our models reason or not; mteb calls it without our arguments."""
    if mode is None:
        yield
        return
    options = {"max_reasoning_tokens": max_reasoning_tokens} if mode == "reason" else {}
    model.encode_query = functools.partial(model.encode_query, reason=mode == "reason", **options)
    try:
        yield
    finally:
        del model.encode_query


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
