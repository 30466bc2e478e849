"""The corpus under a moving policy: fresh rewards without encoding the corpus again.

Every policy update moves every document vector a little. ``Environment`` keeps the vectors of the whole corpus, a
stamp for each row (the policy step whose weights encoded it) and a kNN graph over them. A step scores the embeddings
of a group of rollouts:

1. The stale positives are encoded first: their similarity is the reward's gain, and tells where their rank is decided.
2. Candidates: the best documents for each rollout, the positives, and the graph neighbours of both. A *refresh
   strategy* (one small pure function of ``Candidates``) orders them, and the first ones are encoded again, up to the
   budget; their rows are overwritten and their graph edges repaired.
3. The rows that are still stale are corrected for the drift that all documents have in common, see ``Drift``, and the
   positives are ranked among all documents.

Search is exact: for corpora that fit one machine, multiplying all vectors by all rollouts costs far less than encoding
the budget, and a rank needs the score of every document anyway. With n documents of d dimensions, r rollouts and graph
degree k, memory is ``4 n (d + k + 2)`` bytes (vectors memory-mapped when a folder is given) and at most about 1 GiB
for scores; a step costs ``4 n d (r + 1)`` floating-point operations beside the encoding, and nothing else in it grows
with n. Measured on one core (d = 384, 64 rollouts, 256 documents refreshed, encoding left out): 0.14 s of CPU a step
with 16,000 documents and 0.6 s with 100,000, so about 6 s with 1,000,000; the graph, built once, takes 2 s and 25 s,
and by its n^1.5 about 13 minutes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from searchr3_embed.conversation import check_texts
from searchr3_embed.files import shorten
from training.rl.corpus import environment_files
from training.rl.corpus.drift import Drift
from training.rl.corpus.graph import knn_graph, repair
from training.rl.corpus.which_to_reencode import STRATEGIES, Candidates, rank_impact
from training.shared.vectors_on_disk import reserve

logger = logging.getLogger("training.rl.corpus.environment")

Encode = Callable[[Sequence[str]], np.ndarray]

# Documents encoded at a time while the environment is built, between two steps of the progress bar.
_CHUNK = 1024
# Scores held in memory at once: 0.5 GiB of float32.
_MOST_SCORES = 2**27
# Scores closer than this differ by rounding only (the same text twice); neither outranks the other.
_TIE = 1e-6
# Rows handled at a time: bounds memory.
_ROWS = 8192


@dataclass(frozen=True)
class EnvironmentSettings:
    """How much is refreshed, and what.

    Attributes:
        neighbours: Degree of the kNN graph; 0 for none.
        candidates: Best documents per rollout that are candidates for a refresh.
        budget: Most documents encoded again in one step.
        max_age: A row is fresh when its stamp is at most so many policy steps old.
        refresh: Name of the refresh strategy, one of ``STRATEGIES``.
        correct_drift: Whether stale rows are corrected for the common drift when they are scored.
        seed: Of the clustering that finds neighbours in large corpora; all else is deterministic.
    """

    neighbours: int = 16
    candidates: int = 64
    budget: int = 256
    max_age: int = 0
    refresh: str = "impact"
    correct_drift: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("neighbours", 0), ("candidates", 1), ("budget", 0), ("max_age", 0), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}.")
        if self.refresh not in STRATEGIES:
            raise ValueError(f"refresh must be one of {sorted(STRATEGIES)}, got {self.refresh!r}.")


@dataclass(frozen=True)
class Outcome:
    """What a step found out about the rollouts.

    Attributes:
        ranks: For each rollout the rank of each of its positives among *all* documents, from 0, int64. Positives count
            against one another, as DCG needs: two positives ahead of everything else have the ranks 0 and 1.
        similarities: For each rollout the cosine of each of its positives, float32.
        hardest_negative: Best cosine of a document that is not a positive, float32 of shape (rollouts,); NaN where
            all documents are positives.
        negatives: Row numbers of the best documents that are not positives, the best first, int64 of shape
            (rollouts, as many as were asked for); -1 where there are fewer.
        refreshed: Number of documents encoded.
        share_refreshed: The same as a share of the corpus.
        staleness: Mean age, in policy steps, of the candidates as they were scored; 0 without candidates.
        seconds_encoding: Spent in ``encode``.
        seconds_search: Spent on searching, choosing and ranking.
        seconds_graph: Spent on repairing the graph.
    """

    ranks: list[np.ndarray]
    similarities: list[np.ndarray]
    hardest_negative: np.ndarray
    negatives: np.ndarray
    refreshed: int
    share_refreshed: float
    staleness: float
    seconds_encoding: float
    seconds_search: float
    seconds_graph: float


class Environment:
    """Document vectors, their stamps, their graph and their common drift; made by ``build`` or ``load``.

    Attributes:
        vectors: Float32, shape (documents, d), unit rows, each as it was last encoded.
        stamps: Policy step that encoded each row, int64, shape (documents,).
        graph: Row numbers of each row's neighbours, int32, shape (documents, degree).
    """

    def __init__(
        self, texts: Sequence[str], corpus: str, settings: EnvironmentSettings, vectors: np.ndarray, drift: Drift
    ) -> None:
        self.texts, self.corpus, self.settings, self.vectors, self.drift = texts, corpus, settings, vectors, drift
        self.stamps = np.zeros(len(texts), dtype=np.int64)
        self.graph = np.zeros((len(texts), 0), dtype=np.int32)

    @classmethod
    def build(
        cls,
        texts: Sequence[str],
        encode: Encode,
        settings: EnvironmentSettings,
        *,
        ids: Sequence[str] | None = None,
        folder: Path | None = None,
        progress: bool = True,
    ) -> Environment:
        """Encodes the corpus once, before the first policy step.

        Args:
            texts: The documents. An empty one stays, with the vector that the model gives it, so that rows are places.
            encode: Texts to unit rows, float32 of shape (texts, d), with the current policy.
            settings: See ``EnvironmentSettings``.
            ids: A name for each document, all different.
            folder: Where to keep the vectors, memory-mapped; None keeps them in memory.
            progress: Whether to show a progress bar.

        Raises:
            ValueError: The corpus is empty, ids repeat or do not fit the texts, or ``encode`` gives no unit rows.
        """
        corpus = _fingerprint(texts, ids)
        if empty := sum(not text.strip() for text in texts):
            logger.warning("%d of %d documents are empty; they stay, for rows are numbers, and no query finds them "
                           "for what they say", empty, len(texts))  # fmt: skip
        vectors: np.ndarray | None = None
        with tqdm(total=len(texts), desc="Encoding the corpus", unit="doc", disable=None if progress else True) as bar:
            for start in range(0, len(texts), _CHUNK):
                part = _encoded(encode, texts[start : start + _CHUNK], None if vectors is None else vectors.shape[1])
                if vectors is None:
                    vectors = _room(folder, len(texts), part.shape[1])
                vectors[start : start + len(part)] = part
                bar.update(len(part))
        assert vectors is not None
        environment = cls(texts, corpus, settings, vectors, Drift.none(vectors.shape[1]))
        environment.graph = knn_graph(vectors, settings.neighbours, settings.seed)
        return environment

    def step(
        self,
        embeddings: np.ndarray,
        positives: Sequence[Sequence[int]],
        encode: Encode,
        policy_step: int,
        negatives: int = 0,
    ) -> Outcome:
        """Scores rollouts, refreshing what matters to them.

        Args:
            embeddings: Unit rows, shape (rollouts, d); only of rollouts that have one. No rollouts are fine.
            positives: Row numbers of the documents that answer each rollout's query; at least one each.
            encode: As for ``build``, with the current policy.
            policy_step: Number of updates the policy has had since ``build``; never falls.
            negatives: How many of the best documents that are no positives to name for each rollout.

        Raises:
            ValueError: An argument does not fit; the environment is unchanged then.
        """
        queries = self._checked(embeddings, positives, policy_step)
        began, spent = time.perf_counter(), [0.0, 0.0]
        wanted = np.unique(np.array([row for rows in positives for row in rows], dtype=np.int64))
        refreshed = np.zeros(0, dtype=np.int64)
        budget = {"all": len(self.texts), "none": 0}.get(self.settings.refresh, self.settings.budget)

        def refresh(rows: np.ndarray) -> None:
            nonlocal refreshed
            rows = rows[: budget - len(refreshed)]
            if len(rows):
                spent[0] += self._encode_again(rows, encode, queries, policy_step)
                refreshed = np.union1d(refreshed, rows)

        if len(queries):
            stale = wanted[self._ages(wanted, policy_step) > self.settings.max_age]
            refresh(stale[np.argsort(self.stamps[stale], kind="stable")])
        candidates = wanted
        if len(queries):
            candidates, choice = self._candidates(queries, positives, wanted, policy_step)
            refresh(STRATEGIES[self.settings.refresh](choice))
        if len(refreshed):
            repairing = time.perf_counter()
            repair(self.graph, self.vectors, refreshed)
            spent[1] = time.perf_counter() - repairing
        ranks, similarities, hardest, others = self._rank(queries, positives, policy_step, negatives)
        return Outcome(
            ranks,
            similarities,
            hardest,
            others,
            refreshed=len(refreshed),
            share_refreshed=len(refreshed) / len(self.texts),
            staleness=float(self._ages(candidates, policy_step).mean()) if len(candidates) else 0.0,
            seconds_encoding=spent[0],
            seconds_search=time.perf_counter() - began - sum(spent),
            seconds_graph=spent[1],
        )

    def save(self, folder: Path) -> None:
        """Writes everything but the texts; a kill or a full disk leaves what was saved there before.

        Raises:
            OSError: It cannot be written.
        """
        arrays = {"stamps": self.stamps, "graph": self.graph, **dataclasses.asdict(self.drift)}
        environment_files.write(Path(folder), self.corpus, self.vectors, arrays)

    @classmethod
    def load(
        cls, folder: Path, texts: Sequence[str], settings: EnvironmentSettings, ids: Sequence[str] | None = None
    ) -> Environment:
        """Restores what ``save`` wrote. The vectors are memory-mapped copy-on-write: the saved files never change.

        Args:
            folder: Where it was saved.
            texts: The same documents.
            settings: May differ from those it was saved with.
            ids: As for ``build``.

        Raises:
            ValueError: There is no environment, a broken one, or one of another corpus.
        """
        corpus = _fingerprint(texts, ids)
        moved = [field.name for field in dataclasses.fields(Drift)]
        vectors, arrays = environment_files.read(Path(folder), corpus, len(texts), ["stamps", "graph", *moved])
        environment = cls(texts, corpus, settings, vectors, Drift(**{name: arrays[name] for name in moved}))
        environment.stamps, environment.graph = arrays["stamps"], arrays["graph"]
        if environment.graph.shape[1] != min(settings.neighbours, len(texts) - 1):
            environment.graph = knn_graph(vectors, settings.neighbours, settings.seed)
        return environment

    def _checked(self, embeddings: np.ndarray, positives: Sequence[Sequence[int]], policy_step: int) -> np.ndarray:
        count, size = self.vectors.shape
        queries = np.ascontiguousarray(embeddings, dtype=np.float32)
        if queries.size == 0:
            queries = queries.reshape(0, size)
        if queries.ndim != 2 or queries.shape[1] != size or len(queries) != len(positives):
            raise ValueError(
                f"embeddings must have the shape ({len(positives)}, {size}), a row for each list of positives, got "
                f"{queries.shape}."
            )
        if len(bad := np.flatnonzero(~np.isfinite(queries).all(axis=1))):
            raise ValueError(f"the embedding of rollout {bad[0]} is not finite; leave out rollouts without embedding.")
        for i, rows in enumerate(positives):
            if not len(rows):
                raise ValueError(f"rollout {i} has no positives; a query needs at least one document that answers it.")
            if wrong := [row for row in rows if not 0 <= row < count]:
                raise ValueError(f"rollout {i} has the positive {wrong[0]}; row numbers go from 0 to {count - 1}.")
            if len(set(rows)) != len(rows):
                raise ValueError(f"rollout {i} has a positive twice: {list(rows)}.")
        if policy_step < self.stamps.max():
            raise ValueError(f"policy_step must not fall: got {policy_step} after {self.stamps.max()}.")
        return queries

    def _ages(self, rows: np.ndarray, policy_step: int) -> np.ndarray:
        return np.asarray(policy_step - self.stamps[rows])

    def _scores(self, queries: np.ndarray, policy_step: int) -> Iterator[tuple[int, np.ndarray]]:
        """Corrected scores of all documents, a block of rollouts at a time: (first rollout, (rollouts, documents))."""
        size = max(1, _MOST_SCORES // len(self.texts))
        stamps, places = np.unique(self.stamps, return_inverse=True)
        shifts = self.drift.since(stamps)
        correct = self.settings.correct_drift and bool(shifts.any())
        lengths = np.ones(len(self.texts), dtype=np.float32)
        for start in range(0, len(self.texts) if correct else 0, _ROWS):
            part = slice(start, start + _ROWS)
            lengths[part] = np.linalg.norm(self.vectors[part] + shifts[places[part]], axis=1)
        for start in range(0, len(queries), size):
            block = queries[start : start + size]
            scores = block @ self.vectors.T
            if correct:
                scores += (block @ shifts.T)[:, places]
                scores /= lengths
            yield start, scores

    def _candidates(
        self, queries: np.ndarray, positives: Sequence[Sequence[int]], wanted: np.ndarray, policy_step: int
    ) -> tuple[np.ndarray, Candidates]:
        """All candidates, and what a refresh strategy needs to know of the stale ones."""
        count = len(self.texts)
        found = min(self.settings.candidates, count)
        best = np.full(count, found, dtype=np.int64)
        ranks, cosines = [], []
        for start, scores in self._scores(queries, policy_step):
            for row, own in zip(scores, positives[start:], strict=False):
                place, cosine = _rank_row(row, own)
                ranks.append(place)
                cosines.append(cosine)
                top = np.argpartition(-row, found - 1)[:found]
                top = top[np.lexsort((top, -row[top]))]
                np.minimum.at(best, top, np.arange(found))
        rows = np.union1d(np.flatnonzero(best < found), wanted)
        rows = np.union1d(rows, self.graph[rows])
        if self.settings.refresh == "all":
            rows = np.arange(count)
        stale = rows[self._ages(rows, policy_step) > self.settings.max_age]
        age = self._ages(stale, policy_step)
        pairs = np.repeat(np.arange(len(queries)), [len(own) for own in ranks])
        scores = queries[pairs] @ self.corrected(stale).T
        spread = float(self.drift.spread) * age
        impact = rank_impact(scores, np.concatenate(cosines), np.concatenate(ranks), spread)
        return rows, Candidates(stale, best[stale], age, impact)

    def corrected(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of rows as far as they are known now, float32 of shape (rows, d)."""
        vectors = np.asarray(self.vectors[rows])
        if not self.settings.correct_drift:
            return vectors
        vectors = vectors + self.drift.since(self.stamps[rows])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def _rank(
        self, queries: np.ndarray, positives: Sequence[Sequence[int]], policy_step: int, negatives: int
    ) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray, np.ndarray]:
        ranks, similarities = [], []
        hardest = np.full(len(queries), np.nan, dtype=np.float32)
        others = np.full((len(queries), negatives), -1, dtype=np.int64)
        for start, scores in self._scores(queries, policy_step):
            for i, row in enumerate(scores, start):
                place, cosine = _rank_row(row, positives[i])
                ranks.append(place)
                similarities.append(cosine)
                if len(place) < len(row):
                    hardest[i] = row.max()
                found = min(negatives, len(row) - len(place))
                if found:
                    top = np.argpartition(-row, found - 1)[:found]
                    others[i, :found] = top[np.lexsort((top, -row[top]))]
        return ranks, similarities, hardest, others

    def _encode_again(self, rows: np.ndarray, encode: Encode, queries: np.ndarray, policy_step: int) -> float:
        """Overwrites rows and learns from them how documents drift; returns the seconds that ``encode`` took."""
        began = time.perf_counter()
        fresh = _encoded(encode, [self.texts[row] for row in rows], self.vectors.shape[1])
        seconds = time.perf_counter() - began
        missed = (fresh - self.corrected(rows)) @ queries.T
        self.drift.learn(fresh - self.vectors[rows], self.stamps[rows], policy_step, missed)
        self.vectors[rows] = fresh
        self.stamps[rows] = policy_step
        return seconds


def _rank_row(scores: np.ndarray, own: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Ranks and cosines of the positives ``own`` in one rollout's scores, where they become minus infinity."""
    places = np.asarray(own, dtype=np.int64)
    cosines = scores[places]
    scores[places] = -np.inf
    above = np.array([np.count_nonzero(scores > cosine + _TIE) for cosine in cosines], dtype=np.int64)
    among = np.argsort(np.argsort(-cosines, kind="stable"), kind="stable")
    return above + among, cosines


def _encoded(encode: Encode, texts: Sequence[str], size: int | None) -> np.ndarray:
    """Vectors from ``encode``, or an error that says what is wrong with them."""
    vectors = np.asarray(encode(texts), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts) or size not in (None, vectors.shape[1]):
        raise ValueError(
            f"encode must return one row{f' of {size} dimensions' if size else ''} for each of {len(texts)} texts, "
            f"got shape {vectors.shape}."
        )
    norms = np.linalg.norm(vectors, axis=1)
    if len(bad := np.flatnonzero(~(np.abs(norms - 1) < 0.01))):  # a NaN is bad too
        raise ValueError(
            f"encode must return unit rows; the row of {shorten(texts[bad[0]], 60)!r} has norm {norms[bad[0]]:g}."
        )
    return vectors


def _room(folder: Path | None, count: int, size: int) -> np.ndarray:
    if folder is None:
        return np.empty((count, size), dtype=np.float32)
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / "vectors.npy"
    room = np.lib.format.open_memmap(path, "w+", np.dtype(np.float32), (count, size))
    reserve(path)
    return room


def _fingerprint(texts: Sequence[str], ids: Sequence[str] | None) -> str:
    """A hash of the corpus, which is checked on the way."""
    if not len(texts):
        raise ValueError("the corpus is empty; at least one document is needed.")
    names: Sequence[Any] = ids if ids is not None else range(len(texts))
    if len(names) != len(texts):
        raise ValueError(f"{len(texts)} documents have {len(names)} ids; there must be one for each.")
    seen: set[Any] = set()
    digest = hashlib.sha256()
    for name, text in zip(names, check_texts(texts), strict=True):
        if name in seen:
            raise ValueError(f"document id {name!r} appears twice; ids must differ.")
        seen.add(name)
        digest.update(json.dumps([str(name), text]).encode())
    return digest.hexdigest()
