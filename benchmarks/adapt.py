"""What adapting to a corpus gains, against its peers: nDCG@10 of test questions that no training file holds.

    python -m benchmarks.adapt --data DATA/eval --train-records DATA/train --out results

Five sets, each with its own training file: the frozen encoder, the three sizes of ``searchr3 adapt``, LlamaIndex's
linear adapter on queries, and sentence-transformers' fine-tuning of all weights, after which all documents are
embedded again (the upper end). Each cell is a file in ``OUT/adapt``; the same command goes on with those missing.
The peers need packages of their own: llama-index-finetuning and llama-index-embeddings-adapter; a row whose package is
missing says so.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.peers import NotAvailableError
from searchr3_embed import ReasoningEmbedder
from searchr3_embed.adapt import AdaptSettings, adapt
from searchr3_embed.adapt.names import LEARNERS
from searchr3_embed.adapt.same_text import document_key
from searchr3_embed.files import write_json, write_text
from training.data.beir import BeirData, read_beir
from training.data.overlap import Guard
from training.data.records import Record, read_records
from training.evaluate.machine import machine_description
from training.evaluate.metrics import NDCG, dense_rows, rank, score
from training.evaluate.models import load_embedder

logger = logging.getLogger("benchmarks.adapt")

# Set -> its training file.
SETS = {
    "scifact": "scifact",
    "cosqa": "cosqa_dev_qa",
    "fiqa-lite": "fiqa_dev",
    "perspectrum": "perspectrum",
    "medquad-heldout": "medquad",
}
ENCODER, ADAPTER, ALL_WEIGHTS = "frozen encoder", "LlamaIndex linear adapter", "all weights, everything embedded again"
ROWS = (ENCODER, *LEARNERS, ADAPTER, ALL_WEIGHTS)
# What the adapter's documentation trains for; the rate is sentence-transformers' usual one.
_PEERS_PACKAGES = "llama-index-finetuning llama-index-embeddings-adapter"
_ADAPTER_EPOCHS, _ALL_EPOCHS, _ALL_RATE, _ALL_BATCH = 10, 3, 2e-5, 64

Vectors = tuple[np.ndarray, np.ndarray]


class Setting:
    """One set, with what is trained on.

    Args:
        name: Of the set.
        args: The command line.
    """

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.args = name, args
        self.data: BeirData = read_beir(args.data / name, small=args.small)
        guard = Guard({text: name for text in self.data.queries.values()})
        records = read_records(args.train_records / f"{SETS[name]}.jsonl.gz")
        self.records: list[Record] = [record for record in records if not guard.match(record.query)][: args.most]
        self.excluded = len(records[: args.most]) - len(self.records)
        self.documents = dict(self.data.documents)
        known = {document_key(text) for text in self.documents.values()}
        for text in (text for record in self.records for text in record.positives):
            if document_key(text) not in known:
                known.add(document_key(text))
                self.documents[f"training {len(self.documents)}"] = text

    @property
    def questions(self) -> list[str]:
        """Of the test."""
        return list(self.data.queries.values())

    def ndcg(self, vectors: Vectors) -> dict[str, float]:
        """NDCG@10 of each test question, from the vectors of questions and documents."""
        found = score(self.data, rank(self.data, dense_rows(vectors[0], vectors[1])))
        return {query: row[NDCG] for query, row in found.items()}


def of_encoder(setting: Setting) -> tuple[Vectors, dict[str, Any]]:
    """The encoder that nobody touched."""
    embedder = ReasoningEmbedder(setting.args.model, on_truncate="ignore")
    return (embedder.encode_query(setting.questions, reason=False), _documents(setting, embedder)), {}


def _documents(setting: Setting, model: Any) -> np.ndarray:
    return np.asarray(model.encode_document(list(setting.data.documents.values()), show_progress_bar=True))


def of_size(train: str) -> Callable[[Setting], tuple[Vectors, dict[str, Any]]]:
    """One size of ``searchr3 adapt``."""

    def measured(setting: Setting) -> tuple[Vectors, dict[str, Any]]:
        embedder = ReasoningEmbedder(setting.args.model, on_truncate="ignore")
        adapted, report = adapt(
            embedder,
            setting.documents,
            [(record.query, list(record.positives)) for record in setting.records],
            AdaptSettings(train=train, minutes=setting.args.minutes),
            cache_folder=setting.args.out / "adapt" / "cache",
            work_folder=setting.args.out / "adapt" / "work" / f"{setting.name}-{train}",
        )
        notes = report.as_json()
        if not report.written:
            # Nothing is written, so the user goes on with the encoder.
            return of_encoder(setting)[0], notes
        return (adapted.encode_query(setting.questions), _documents(setting, adapted)), notes

    return measured


def of_adapter(setting: Setting) -> tuple[Vectors, dict[str, Any]]:
    """LlamaIndex's linear adapter on queries, with its own settings."""
    try:
        finetuning: Any = importlib.import_module("llama_index.finetuning")
        base: Any = importlib.import_module("llama_index.embeddings.searchr3")
    except ImportError as error:
        raise NotAvailableError(f"{error}; run pip install {_PEERS_PACKAGES}") from error
    encoder = ReasoningEmbedder(setting.args.model, on_truncate="ignore")
    frozen = base.SearchR3Embedding(model_name=setting.args.model, reason_queries=False)
    numbers = {key: text for key, text in setting.documents.items()}
    by_text = {document_key(text): key for key, text in numbers.items()}
    dataset = finetuning.EmbeddingQAFinetuneDataset(
        queries={str(n): record.query for n, record in enumerate(setting.records)},
        corpus=numbers,
        relevant_docs={
            str(n): [by_text[document_key(text)] for text in record.positives]
            for n, record in enumerate(setting.records)
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = finetuning.EmbeddingAdapterFinetuneEngine(
            dataset, frozen, epochs=_ADAPTER_EPOCHS, model_output_path=folder, device="cpu"
        )
        engine.finetune()
        model = engine.get_finetuned_model()
        questions = np.array([model.get_query_embedding(text) for text in setting.questions], dtype=np.float32)
    questions /= np.linalg.norm(questions, axis=1, keepdims=True)
    return (questions, _documents(setting, encoder)), {"epochs": _ADAPTER_EPOCHS}


def of_all_weights(setting: Setting) -> tuple[Vectors, dict[str, Any]]:
    """Sentence-transformers' trainer on all weights; every document is embedded again."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = load_embedder(setting.args.all_weights_of)
    rows = [(record.query, text) for record in setting.records for text in record.positives]
    dataset = Dataset.from_dict({"anchor": [one for one, _ in rows], "positive": [other for _, other in rows]})
    with tempfile.TemporaryDirectory() as folder:
        options = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=_ALL_EPOCHS,
            learning_rate=_ALL_RATE,
            per_device_train_batch_size=_ALL_BATCH,
            warmup_steps=0.1,
            batch_sampler="no_duplicates",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            seed=7,
        )
        loss: Any = MultipleNegativesRankingLoss(model)
        SentenceTransformerTrainer(model=model, args=options, train_dataset=dataset, loss=loss).train()
    questions = np.asarray(model.encode_query(setting.questions, normalize_embeddings=True))
    return (questions, _documents(setting, model)), {"epochs": _ALL_EPOCHS}


def cell(row: str, setting: Setting) -> dict[str, Any]:
    """One cell of the table."""
    ways = {ENCODER: of_encoder, ADAPTER: of_adapter, ALL_WEIGHTS: of_all_weights}
    way = ways.get(row) or of_size(row)
    began = time.perf_counter()
    try:
        vectors, notes = way(setting)
    except NotAvailableError as error:
        return {"row": row, "set": setting.name, "missing": str(error)}
    per_question = setting.ndcg(vectors)
    return {
        "row": row,
        "set": setting.name,
        NDCG: float(np.mean(list(per_question.values()))),
        "seconds": round(time.perf_counter() - began, 1),
        "questions": len(per_question),
        "training_questions": len(setting.records),
        "excluded": setting.excluded,
        "notes": notes,
        "per_question": per_question,
    }


def table(cells: Sequence[dict[str, Any]], sets: Sequence[str]) -> str:
    """The table in Markdown; a mean only where a row has all sets."""
    found = {(one["row"], one["set"]): one for one in cells}
    lines = []
    for row in ROWS:
        values = [found.get((row, name), {}).get(NDCG) for name in sets]
        if not any((row, name) in found for name in sets):
            continue
        shown = ["-" if value is None else f"{value:.4f}" for value in values]
        whole = [value for value in values if value is not None]
        mean = f"{np.mean(whole):.4f}" if len(whole) == len(sets) else "-"
        seconds = [found[row, name].get("seconds") for name in sets if (row, name) in found]
        times = [value for value in seconds if value is not None]
        lines.append([row, *shown, mean, f"{np.mean(times):.0f}" if times else "-"])
    head = ["nDCG@10", *sets, "mean", "seconds a set"]
    missing = sorted({one["missing"] for one in cells if "missing" in one})
    return "\n\n".join([tabulate(lines, head, tablefmt="github", disable_numparse=True), *missing]) + "\n"


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the evaluation sets (BEIR layout)")
    parser.add_argument("--train-records", type=Path, required=True, help="folder of their training files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="default: all five")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="default: all six")
    parser.add_argument("--model", default="searchr3", help="an encoder with a thinker (default: searchr3)")
    parser.add_argument("--all-weights-of", default="teacher", help="for the last peer (default: all-MiniLM-L6-v2)")
    parser.add_argument("--minutes", type=float, default=15.0, help="for each training of ours (default: 15)")
    parser.add_argument("--most", type=int, default=5000, help="most training records of a set (default: 5000)")
    parser.add_argument("--small", action="store_true", help="the fast lists of the sets")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    args = arguments().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    folder = args.out / "adapt"
    settings = {name: value for name, value in vars(args).items() if name in ("model", "minutes", "most", "small")}
    cells: list[dict[str, Any]] = []
    try:
        for name in args.sets:
            setting: Setting | None = None
            for row in args.rows:
                path = folder / f"{name}-{row.replace(' ', '-').replace(',', '')}.json"
                with contextlib.suppress(FileNotFoundError):
                    stored = json.loads(path.read_text(encoding="utf-8"))
                    if stored["settings"] == settings and "missing" not in stored["cell"]:
                        cells.append(stored["cell"])
                        continue
                setting = setting or Setting(name, args)
                cells.append(cell(row, setting))
                write_json(path, {"settings": settings, "cell": cells[-1]})
                print(f"{name}, {row}: {cells[-1].get(NDCG, cells[-1].get('missing'))}", flush=True)
        written = {"machine": machine_description(), "settings": settings, "cells": cells}
        write_json(args.out / "adapt.json", written)
        write_text(args.out / "adapt.md", table(cells, args.sets))
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(table(cells, args.sets))
    return 0


if __name__ == "__main__":
    sys.exit(main())
