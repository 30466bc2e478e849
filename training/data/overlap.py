"""The guard that keeps evaluation queries out of the training data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from searchr3_embed.adapt.same_text import QueryIndex
from training.data.beir import beir_folders, evaluation_queries


class Guard:
    """Finds queries that equal or nearly equal an evaluation query.

    Args:
        queries: Evaluation query -> name of its set.
    """

    def __init__(self, queries: Mapping[str, str]) -> None:
        self._sets = list(queries.values())
        self._index = QueryIndex(queries)
        for query in queries:
            self._index.add(query)

    @classmethod
    def of_folders(cls, paths: Iterable[Path]) -> Guard:
        """Takes the evaluation queries of BEIR-layout folders, or of folders of them."""
        folders = [folder for path in paths for folder in beir_folders([Path(path)])]
        return cls(
            {text: folder.resolve().name for folder in folders for text in evaluation_queries(folder) if text.strip()}
        )

    def match(self, query: str) -> tuple[str, str, bool] | None:
        """The evaluation query that a training query is too close to, with its set and whether they are equal."""
        found = self._index.find(query)
        return found and (self._index.queries[found[0]], self._sets[found[0]], found[1])
