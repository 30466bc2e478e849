"""Retrieval quality and cost of any number of models on BEIR-layout folders: one run, one table.

    python -m training.evaluate --model searchr3 --model teacher --model bm25 --data DATA/eval --small --out results

Our checkpoints are measured twice, direct (one forward pass per query) and reasoning (think, then embed), against the
same document vectors. Ranking is exact (inner product of normalised vectors), the metrics are trec_eval's, through
pytrec_eval. The folder layout is described in ``training/data/beir.py``.

Files in ``--out``: results.json (everything), results.md and results.png (for people), per_query.jsonl (nDCG@10 and
recall@100 of every query), reasoning.jsonl (what the model wrote for every query), cells/ and mteb/ (one file per
model and set or task; ``--resume`` reuses those whose model, data and settings are unchanged).
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from searchr3_embed import interruption
from searchr3_embed.files import shorten
from training.data.beir import BeirData, beir_folders, read_beir
from training.data.lines import SKIP_BAD_HELP, DataError
from training.evaluate import mteb_tasks
from training.evaluate.cells import Cell, EvaluationError, Settings
from training.evaluate.measuring import measure_group
from training.evaluate.models import DTYPES, System, check_budgets, load_model, parse_model
from training.evaluate.results import parts_of, summarise, write_results
from training.evaluate.stored_cells import model_key, stored_cells, write_cell
from training.evaluate.tables import render


def evaluate(
    models: Sequence[str],
    folders: Sequence[str | Path],
    *,
    mteb: Sequence[str] = (),
    settings: Settings | None = None,
    out: Path | None = None,
    batch_size: int = 32,
    device: str | None = None,
    baseline: str | None = None,
    out_of_domain: Sequence[str] = (),
    resume: bool = False,
    skip_bad: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures every model on every set and writes the result files.

    Args:
        models: ``--model`` values, see ``parse_model``.
        folders: BEIR-layout folders, or folders of them; may be empty where ``mteb`` is not.
        mteb: Names of tasks of the mteb package, see ``training/evaluate/mteb_tasks.py``; BM25 is not measured on
            them.
        settings: Split, small lists, reasoning budget.
        out: Folder for the result files; None writes none.
        batch_size: Texts per forward pass.
        device: Where torch models run; None chooses.
        baseline: Label of the row the others are compared with; None takes "teacher" if it is there.
        out_of_domain: Names of sets whose means are shown apart, because nothing like them was trained on.
        resume: Reuse the cells in ``out`` whose model, data and settings are unchanged.
        skip_bad: Leave out and count lines of the sets that are broken instead of raising for the first.
        progress: Show progress bars on stderr.

    Returns:
        What results.json holds, see ``summarise``.

    Raises:
        DataError: A set cannot be read.
        EvaluationError: A model or another argument cannot be used.
    """
    run = _Run(settings or Settings(), out, batch_size, device, resume, progress)
    systems = _parse_models(models, baseline)
    _check(run, folders, mteb)
    tasks = mteb_tasks.find_tasks(mteb)
    paths = beir_folders([Path(folder) for folder in folders])
    sets, left_out = _read_sets(paths, run.settings, skip_bad)
    parts_of([data.name for data in sets], out_of_domain)
    cells, task_scores = _measure_all(run, systems, list(zip(paths, sets, strict=True)), tasks)
    ordered = [cells[system.label, data.name] for system in systems for data in sets]
    results = summarise(ordered, run.settings, baseline, left_out, out_of_domain)
    if tasks:
        results["mteb"] = mteb_tasks.summarise(tasks, task_scores)
    if out:
        write_results(out, results, ordered)
    return results


@dataclass(frozen=True)
class _Run:
    """What holds for every model and set of one run."""

    settings: Settings
    out: Path | None
    batch_size: int
    device: str | None
    resume: bool
    progress: bool


def _check(run: _Run, folders: Sequence[str | Path], mteb: Sequence[str]) -> None:
    if run.batch_size < 1:
        raise EvaluationError(f"--batch-size must be at least 1, got {run.batch_size}")
    if run.resume and run.out is None:
        raise EvaluationError("--resume needs --out: the folder of the run to continue")
    if not folders and not mteb:
        raise EvaluationError("nothing to measure on: --data takes BEIR-layout folders, --mteb names of MTEB tasks")


def _parse_models(models: Sequence[str], baseline: str | None) -> list[System]:
    systems = [system for spec in models for system in parse_model(spec)]
    labels = [system.label for system in systems]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise EvaluationError(f"model given twice: {', '.join(repeated)}; name one of them with LABEL=...")
    if baseline is not None and baseline not in labels:
        raise EvaluationError(f"--baseline {baseline!r} is not among the models measured: {', '.join(labels)}")
    return systems


def _by_model(systems: Sequence[System]) -> list[list[System]]:
    """The rows in groups that share a model, which is loaded once and encodes the documents once."""
    groups: dict[tuple[str, str], list[System]] = {}
    for system in systems:
        groups.setdefault((system.kind, system.source), []).append(system)
    return list(groups.values())


def _read_sets(
    paths: Sequence[Path], settings: Settings, skip_bad: bool
) -> tuple[list[BeirData], dict[str, dict[str, int]]]:
    """The sets, and by name what is not in them: broken lines, judgements of what is not there."""
    sets, left_out = [], {}
    for path in paths:
        counts: Counter[str] = Counter()
        data = read_beir(path, settings.small, settings.split, keep_lost=True, skip_bad=counts if skip_bad else None)
        sets.append(data)
        if counts := counts + data.dangling:
            left_out[data.name] = dict(counts)
    return sets, left_out


def _measure_all(
    run: _Run, systems: Sequence[System], sets: Sequence[tuple[Path, BeirData]], tasks: Sequence[Any]
) -> tuple[dict[tuple[str, str], Cell], dict[str, dict[str, float]]]:
    """Cells by label and set, and the scores on the tasks by label and task."""
    cells: dict[tuple[str, str], Cell] = {}
    task_scores: dict[str, dict[str, float]] = {s.label: {} for s in systems if tasks and s.kind != "bm25"}
    total = len(systems) * len(sets) + len(task_scores) * len(tasks)
    with tqdm(total=total, unit="cell", disable=not run.progress, file=sys.stderr) as bar:
        for group in _by_model(systems):
            load = functools.cache(functools.partial(_load, run, group))
            for path, data in sets:
                bar.set_postfix_str(f"{group[0].label} on {data.name}")
                for cell in _measure(run, load, group, path, data):
                    cells[cell.model, cell.set] = cell
                    bar.update()
            for system in group if group[0].kind != "bm25" else ():
                for task in tasks:
                    name = task.metadata.name
                    bar.set_postfix_str(f"{system.label} on {name}")
                    task_scores[system.label][name] = _measure_task(run, load, system, task)
                    bar.update()
    return cells, task_scores


def _load(run: _Run, group: Sequence[System]) -> Any:
    model = load_model(group[0], run.settings, run.device)
    check_budgets(model, group, run.settings)
    return model


def _measure(run: _Run, load: Callable[[], Any], group: list[System], path: Path, data: BeirData) -> Iterator[Cell]:
    """The cells of one set for the rows of one model: those that are stored, then the others, which are stored."""
    stored, keys = stored_cells(run.out, group, path, run.settings, run.resume)
    yield from stored.values()
    missing = [system for system in group if system.label not in stored]
    if not missing:
        return
    for cell in measure_group(load, missing, data, run.settings, run.batch_size, run.progress):
        if run.out:
            write_cell(run.out, cell, keys[cell.model])
        yield cell


def _measure_task(run: _Run, load: Callable[[], Any], system: System, task: Any) -> float:
    stored = None
    if run.out:
        stored = run.out / "mteb" / model_key(system, run.settings)[:16] / f"{task.metadata.name}.json"
    return mteb_tasks.measure(
        load,
        task,
        system.mode,
        system.budget_in(run.settings),
        stored=stored,
        resume=run.resume,
        batch_size=run.batch_size,
        progress=run.progress,
    )


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="[LABEL=]MODEL",
        help="repeatable: one of our checkpoints (alias, folder or hub id; measured direct and reasoning, ':direct' "
        "or ':reason' after it chooses one, ':reason:0' a budget of its own), st:NAME (any SentenceTransformer, name "
        "or folder), teacher (all-MiniLM-L6-v2), bm25",
    )
    parser.add_argument("--data", nargs="+", default=[], type=Path, help="BEIR-layout folders, or folders of them")
    parser.add_argument(
        "--mteb",
        nargs="+",
        default=[],
        metavar="TASK[=FOLDER]",
        help="tasks of the mteb package, for example BrightBiologyRetrieval SciFact; needs pip install mteb, and the "
        "network unless FOLDER holds a copy of the task's data set",
    )
    parser.add_argument("--small", action="store_true", help="only queries_150.txt and docs_small.txt of each set")
    parser.add_argument("--split", default="test", help="judgements to use: test, dev, ... (default: test)")
    parser.add_argument("--out", type=Path, help="folder for the result files")
    parser.add_argument("--batch-size", type=int, default=32, help="texts per forward pass (default: 32)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the weights (default: auto, which is float32 on a CPU; bfloat16 takes about a third of the time on "
        "one that has instructions for it, and moves scores by about 0.001)",
    )
    parser.add_argument("--max-reasoning-tokens", type=int, help="reasoning budget (default: the checkpoint's)")
    parser.add_argument("--baseline", help="row the others are compared with (default: teacher, if it is measured)")
    parser.add_argument(
        "--out-of-domain",
        nargs="+",
        default=[],
        metavar="SET",
        help="names of sets unlike anything trained on: their means are shown apart from those of the others",
    )
    parser.add_argument("--resume", action="store_true", help="keep what --out already holds for unchanged inputs")
    parser.add_argument("--skip-bad", action="store_true", help=SKIP_BAD_HELP)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    args = arguments().parse_args(argv)
    try:
        results = evaluate(
            args.model,
            args.data,
            mteb=args.mteb,
            settings=Settings(args.split, args.small, args.max_reasoning_tokens, args.dtype),
            out=args.out,
            batch_size=args.batch_size,
            device=args.device,
            baseline=args.baseline,
            out_of_domain=args.out_of_domain,
            resume=args.resume,
            skip_bad=args.skip_bad,
            progress=not args.quiet,
        )
    except (DataError, EvaluationError, OSError) as error:
        print(f"error: {shorten(str(error), 1000) or type(error).__name__}", file=sys.stderr)
        return 2
    try:
        print(render(results), end="", flush=True)
    except BrokenPipeError:  # the reader has seen enough (`| head`); Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(interruption.run(main, "interrupted; --out keeps what is measured, for --resume"))
