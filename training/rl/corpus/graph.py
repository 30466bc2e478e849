"""The kNN graph over the documents of the environment."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from tqdm import tqdm

# Largest corpus whose graph is built by comparing all pairs; beyond it an inverted file finds the neighbours.
_MOST_EXACT = 50_000
# Rows handled at a time, and rows whose edges are repaired at a time: they bound memory.
_ROWS, _REPAIR = 8192, 64


def knn_graph(vectors: np.ndarray, degree: int, seed: int) -> np.ndarray:
    """The nearest neighbours of every row among all rows, by faiss: exact up to 50,000 rows, by cells beyond.

    Args:
        vectors: Float32 unit rows, shape (documents, d).
        degree: Neighbours of each row, at most all others.
        seed: Of the clustering into cells.

    Returns:
        Row numbers, int32 of shape (documents, degree). Where a cell holds too few rows, a row's own number fills up.
    """
    count, size = vectors.shape
    degree = min(degree, count - 1)
    graph = np.zeros((count, degree), dtype=np.int32)
    if degree < 1:
        return graph
    index: Any = faiss.IndexFlatIP(size)
    if count > _MOST_EXACT:
        cells = int(4 * np.sqrt(count))
        index = faiss.IndexIVFFlat(index, size, cells, faiss.METRIC_INNER_PRODUCT)
        # Ten rounds of clustering instead of 25: the cells hardly move after that, and it is most of the work.
        index.cp.seed, index.cp.niter, index.nprobe = seed + 1, 10, 16
        sample = np.sort(np.random.default_rng(seed).choice(count, min(count, 64 * cells), replace=False))
        index.train(vectors[sample])
    for start in range(0, count, _ROWS):
        index.add(np.ascontiguousarray(vectors[start : start + _ROWS]))
    for start in tqdm(range(0, count, _ROWS), desc="Building the graph", disable=None):
        own = np.arange(start, min(start + _ROWS, count))[:, None]
        near = index.search(np.ascontiguousarray(vectors[start : start + _ROWS]), degree + 1)[1]
        near = np.where(near < 0, own, near)
        # A row is mostly, but with equal texts not always, its own best neighbour; move it to the end and cut it off.
        graph[own[:, 0]] = np.take_along_axis(near, np.argsort(near == own, axis=1, kind="stable"), axis=1)[:, :degree]
    return graph


def repair(graph: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> None:
    """Finds the neighbours of rows that have moved among their old neighbours and the neighbours of those.

    Args:
        graph: As ``knn_graph`` gives it; changed in place.
        vectors: Float32 unit rows as they are now.
        rows: Numbers of the rows that have moved.
    """
    degree = graph.shape[1]
    for start in range(0, len(rows) if degree else 0, _REPAIR):
        part = rows[start : start + _REPAIR]
        old = graph[part]
        pool = np.sort(np.hstack([old, graph[old].reshape(len(part), -1)]), axis=1)
        scores = np.matmul(vectors[pool], vectors[part][:, :, None])[:, :, 0]
        scores[:, 1:][pool[:, 1:] == pool[:, :-1]] = -np.inf
        scores[pool == part[:, None]] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :degree]
        graph[part] = new = np.take_along_axis(pool, best, axis=1)
        # A new edge also becomes one the other way round, where it beats the worst there.
        for i, j in np.argwhere(~(new[:, :, None] == old[:, None, :]).any(axis=2)):
            row, other = part[i], new[i, j]
            nearness = vectors[np.append(graph[other], row)] @ vectors[other]
            worst = int(nearness[:-1].argmin())
            if nearness[-1] > nearness[worst] and row not in graph[other]:
                graph[other, worst] = row
