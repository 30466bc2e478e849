"""Peak memory of one side, measured in a process of its own.

    python -m benchmarks.memory JOB.json

The job names the side, the model's folder, the texts and the batch size. Embeddings and reasoning go to a file beside
the job, so that the sides can be compared; the figures go to stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIDES = ("ours, queries", "peer, queries", "ours, documents", "stock, documents")


class ProcessError(Exception):
    """The process of a side failed."""


def peak_bytes() -> int:
    """Most memory that this process has held at once.

    On Linux ``ru_maxrss`` of a child starts at what its parent held, so the kernel's own mark is read first.
    """
    import resource

    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no such file outside Linux
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def measure(
    side: str, folder: Path, texts: Sequence[str], batch_size: int, scratch: Path, python: str = sys.executable
) -> dict[str, Any]:
    """Runs one side in a fresh process.

    Args:
        side: One of ``SIDES``.
        folder: The model.
        texts: What it embeds.
        batch_size: Rows at once.
        scratch: Folder for the job and its vectors.
        python: Runs the process.

    Returns:
        ``loaded_bytes`` (peak once the model is there), ``peak_bytes``, ``ids`` (or None) and ``vectors``.

    Raises:
        ProcessError: The process failed; its last lines are in the message.
    """
    job = scratch / f"{side.replace(' ', '-').replace(',', '')}.json"
    settings = {"side": side, "folder": str(folder), "batch_size": batch_size, "threads": torch.get_num_threads()}
    job.write_text(json.dumps({**settings, "texts": list(texts)}), encoding="utf-8")
    root = Path(__file__).parents[1]
    try:
        finished = subprocess.run(
            [python, "-m", "benchmarks.memory", str(job)], capture_output=True, text=True, cwd=root, check=False
        )
    except OSError as error:
        raise ProcessError(f"{side}: {python} can't be run: {error}") from error
    if finished.returncode:
        raise ProcessError(f"{side}: {python} failed: {finished.stderr.strip()[-500:]}")
    return {**json.loads(finished.stdout.splitlines()[-1]), "vectors": np.load(job.with_suffix(".npy"))}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a job and prints its figures."""
    (path,) = sys.argv[1:] if argv is None else argv
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    ids, vectors, loaded = _run(job["side"], Path(job["folder"]), job["texts"], job["batch_size"])
    np.save(Path(path).with_suffix(".npy"), vectors)
    print(json.dumps({"loaded_bytes": loaded, "peak_bytes": peak_bytes(), "ids": ids}))
    return 0


def _run(side: str, folder: Path, texts: list[str], batch_size: int) -> tuple[list[list[int]] | None, np.ndarray, int]:
    """Loads only what the side needs; for the peer that is the language model and the conversation's tokenizer."""
    if side == "stock, documents":
        from sentence_transformers import SentenceTransformer

        stock = SentenceTransformer(str(folder), device="cpu")
        loaded = peak_bytes()
        return None, np.asarray(stock.encode(texts, batch_size=batch_size, show_progress_bar=False)), loaded
    if side == "peer, queries":
        from searchr3_embed.checkpoint.thinker import has_thinker

        if has_thinker(folder):
            return _stock_with_thinker(folder, texts, batch_size)
        from benchmarks.peers import generate_then_embed
        from searchr3_embed.checkpoint import load

        checkpoint = load.load(folder, name=str(folder), device="cpu", on_truncate="ignore")
        loaded = peak_bytes()
        return *generate_then_embed(checkpoint.model, checkpoint.conversation, texts, batch_size), loaded
    from searchr3_embed import ReasoningEmbedder

    embedder = ReasoningEmbedder(str(folder), device="cpu", on_truncate="ignore")
    loaded = peak_bytes()
    if side == "ours, documents":
        return None, embedder.encode_document(texts, batch_size=batch_size, show_progress_bar=False), loaded
    traces = embedder.reason(texts, batch_size=batch_size)
    return [trace.reasoning_ids for trace in traces], np.stack([trace.embedding for trace in traces]), loaded


def _stock_with_thinker(folder: Path, texts: list[str], batch_size: int) -> tuple[list[list[int]], np.ndarray, int]:
    from sentence_transformers import SentenceTransformer

    from benchmarks.peers import encode_then_generate
    from searchr3_embed.checkpoint.thinker import load_question_side

    stock = SentenceTransformer(str(folder), device="cpu")
    dimension = stock.get_embedding_dimension() or 0
    network: Any = stock[0].auto_model
    side = load_question_side(folder, network, dimension, on_truncate="ignore")
    loaded = peak_bytes()
    return *encode_then_generate(stock, side, texts, batch_size), loaded


if __name__ == "__main__":
    sys.exit(main())
