"""What an agent's words are worth, and whether what the model wrote survives as text.

    python -m training.evaluate.given_reasoning --model searchr3 --data DATA/eval/hotpotqa-500 DATA/eval/perspectrum

An agent that searches a second time knows something already. Here it knows one of the documents that answer a
question: its words are taken from there, and the document itself leaves the ranking and the judgements. In a set with
titles the words are the sentence that names another answering document (the bridge fact of a multi-hop question); in
a set without they are the known document. Questions without such words are left out and counted. Four rows: the
frozen encoder, its concatenation with the words, the thinker on its own, the thinker behind the given words.

Round trip: the share of what the thinker wrote whose text, given back, is read as the same token ids.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from searchr3_embed.files import shorten, write_json
from training.data.beir import BeirData, beir_folders, read_beir
from training.data.lines import DataError, parse_json, parse_lines
from training.evaluate.cells import EvaluationError, Settings
from training.evaluate.metrics import NDCG, RECALL, dense_rows, rank, score
from training.evaluate.models import System, load_model
from training.evaluate.significance import paired_test

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])")
ENCODER, CONCATENATED, THINKING, GIVEN = "encoder", "encoder, words behind the question", "thinking", "given words"


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known about one question.

    Attributes:
        document: The id of the document that the agent has read.
        words: What it says of it.
    """

    document: str
    words: str


def known_facts(data: BeirData, titles: dict[str, str]) -> dict[str, Known]:
    """What an agent may know about each question; questions without such words are not in the result.

    Args:
        data: A set.
        titles: Of its documents; empty for a set without titles.
    """
    facts: dict[str, Known] = {}
    for query in data.queries:
        answers = sorted(name for name, grade in data.qrels[query].items() if grade > 0 and name in data.documents)
        if len(answers) < 2:
            continue
        found = _bridge(answers, data.documents, titles) if titles else Known(answers[0], data.documents[answers[0]])
        if found is not None:
            facts[query] = found
    return facts


def _bridge(answers: Sequence[str], documents: dict[str, str], titles: dict[str, str]) -> Known | None:
    for known in answers:
        # A title may end with what tells it from others: "Ed Wood (film)".
        names = [re.sub(r" \([^)]*\)$", "", titles.get(other, "")) for other in answers if other != known]
        body = documents[known].removeprefix(titles.get(known, "")).strip()
        for sentence in _SENTENCE_END.split(body):
            if any(name and name.lower() in sentence.lower() for name in names):
                return Known(known, sentence)
    return None


def titles_of(folder: Path) -> dict[str, str]:
    """The titles of a set's documents that have one."""
    path = next(file for name in ("corpus.jsonl", "corpus.jsonl.gz") if (file := folder / name).is_file())
    rows = parse_lines(path, parse_json)
    return {str(row["_id"]): row["title"] for row in rows if row.get("title")}


def measure(embedder: Any, data: BeirData, facts: dict[str, Known], batch_size: int, progress: bool) -> dict[str, Any]:
    """Scores of the four rows, the differences between them, and the round trip.

    Args:
        embedder: An encoder with a thinker, or a single model.
        data: A set.
        facts: What is known about its questions.
        batch_size: Texts per forward pass.
        progress: Show a progress bar.
    """
    texts = [data.queries[query] for query in facts]
    words = [known.words for known in facts.values()]
    options: dict[str, Any] = {"batch_size": batch_size}
    documents = embedder.encode_document(list(data.documents.values()), show_progress_bar=progress, **options)
    traces = embedder.reason(texts, **options)
    joined = [f"{text} {more}" for text, more in zip(texts, words, strict=True)]
    vectors = {
        ENCODER: embedder.encode_query(texts, reason=False, **options),
        CONCATENATED: embedder.encode_query(joined, reason=False, **options),
        THINKING: np.stack([trace.embedding for trace in traces]),
        GIVEN: embedder.encode_query(texts, reasoning=words, **options),
    }
    rest = _without_known(data, facts)
    places = {name: place for place, name in enumerate(data.documents)}
    gone = [places[known.document] for known in facts.values()]
    scores = {row: _scores(rest, found, documents, gone) for row, found in vectors.items()}
    pairs = [(GIVEN, THINKING), (GIVEN, CONCATENATED), (GIVEN, ENCODER), (CONCATENATED, ENCODER)]
    return {
        "questions": len(facts),
        "left_out": len(data.queries) - len(facts),
        "words_per_question": float(np.mean([len(text.split()) for text in words])),
        "rows": {
            row: {metric: float(np.mean([one[metric] for one in found.values()])) for metric in (NDCG, RECALL)}
            for row, found in scores.items()
        },
        "differences": {
            f"{one} - {other}": paired_test([(scores[one][q][NDCG], scores[other][q][NDCG]) for q in facts])
            for one, other in pairs
        },
        "round_trip": round_trip(embedder, traces, batch_size),
    }


def round_trip(embedder: Any, traces: Sequence[Any], batch_size: int) -> dict[str, float]:
    """What is left of written reasonings when their ids, or only their text, are given back.

    Returns:
        ``same_ids``: share whose text is read as the same ids; ``ids_largest_difference``: of any number in a vector,
        given the ids; ``text_mean_cosine``: to the thinking vectors, given the text.
    """
    texts = [trace.text for trace in traces]
    vectors = np.stack([trace.embedding for trace in traces])
    by_ids = embedder.encode_query(texts, reasoning=list(traces), batch_size=batch_size)
    by_text = embedder.reason(texts, reasoning=[trace.reasoning for trace in traces], batch_size=batch_size)
    again = np.stack([trace.embedding for trace in by_text])
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(again, axis=1)
    same = [one.reasoning_ids == other.reasoning_ids for one, other in zip(traces, by_text, strict=True)]
    return {
        "same_ids": float(np.mean(same)),
        "ids_largest_difference": float(np.abs(by_ids - vectors).max()),
        "text_mean_cosine": float(np.mean((vectors * again).sum(axis=1) / lengths)),
    }


def _without_known(data: BeirData, facts: dict[str, Known]) -> BeirData:
    qrels = {
        query: {name: grade for name, grade in data.qrels[query].items() if name != known.document}
        for query, known in facts.items()
    }
    return dataclasses.replace(data, queries={query: data.queries[query] for query in facts}, qrels=qrels)


def _scores(data: BeirData, queries: Any, documents: Any, gone: Sequence[int]) -> dict[str, dict[str, float]]:
    def rows() -> Any:
        for row, known in zip(dense_rows(queries, documents), gone, strict=True):
            row = row.copy()
            row[known] = row.min() - 1  # behind all others
            yield row

    return score(data, rank(data, rows()))


def render(results: dict[str, Any]) -> str:
    """The results for people."""
    lines: list[str] = []
    for name, found in results.items():
        lines += [
            f"{name}: {found['questions']} questions ({found['left_out']} without such words left out), "
            f"{found['words_per_question']:.1f} words each",
            "",
            "| row | nDCG@10 | recall@100 |",
            "|---|---|---|",
            *(f"| {row} | {one[NDCG]:.4f} | {one[RECALL]:.4f} |" for row, one in found["rows"].items()),
            "",
            *(
                f"{two}: {one['difference']:+.4f} (p {one['p_value']:.3f})"
                for two, one in found["differences"].items()
            ),
            "round trip: {same_ids:.1%} of the reasonings read as the same ids from their text (mean cosine "
            "{text_mean_cosine:.4f}); given the ids, vectors differ by at most {ids_largest_difference:.1e}".format(
                **found["round_trip"]
            ),
            "",
        ]
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate.given_reasoning", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--model", default="searchr3", help="one of our checkpoints (default: searchr3)")
    parser.add_argument("--data", nargs="+", required=True, type=Path, help="BEIR-layout folders, or folders of them")
    parser.add_argument("--small", action="store_true", help="only queries_150.txt and docs_small.txt of each set")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--batch-size", type=int, default=32, help="texts per forward pass (default: 32)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    args = arguments().parse_args(argv)
    try:
        if args.batch_size < 1:
            raise EvaluationError(f"--batch-size must be at least 1, got {args.batch_size}")
        folders = beir_folders(args.data)
        embedder = load_model(System(args.model, "ours", args.model), Settings(), args.device)
        results: dict[str, Any] = {}
        for folder in tqdm(folders, disable=args.quiet, file=sys.stderr):
            data = read_beir(folder, args.small)
            facts = known_facts(data, titles_of(folder))
            if not facts:
                raise EvaluationError(f"{folder}: no question has two answering documents: one known, one to find")
            results[data.name] = measure(embedder, data, facts, args.batch_size, not args.quiet)
        if args.out:
            write_json(args.out, results)
    except (DataError, EvaluationError, OSError) as error:
        print(f"error: {shorten(str(error), 1000) or type(error).__name__}", file=sys.stderr)
        return 2
    print(render(results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
