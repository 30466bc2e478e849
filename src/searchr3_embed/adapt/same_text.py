"""When two texts count as the same: documents by everything but white space, questions by most of their words."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

# Two queries are close when they share at least this part of their words (Jaccard).
CLOSE = 0.85


def words(text: str) -> list[str]:
    """The runs of letters and digits of a text, lower case."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())


def query_key(text: str) -> str:
    """What queries are compared by: letters and digits in lower case; a query of signs only stays as it is."""
    return "".join(words(text)) or text.strip()


def document_key(text: str) -> str:
    """What documents are compared by: everything but white space; code with another operator is another document."""
    return " ".join(text.split())


def close(one: set[str], other: set[str]) -> bool:
    """Whether two sets of words have a Jaccard of at least ``CLOSE``; empty ones have not."""
    shared = len(one & other)
    return shared > 0 and shared >= CLOSE * (len(one) + len(other) - shared) - 1e-9


class QueryIndex:
    """Finds the query among those added that equals or nearly equals a given one.

    Near equality needs no comparison with every query: two sets of words with a Jaccard of at least ``CLOSE`` share
    one of their few rarest words (prefix filtering), so an index of those words gives all candidates.

    Args:
        queries: What the frequency of a word is counted in; nothing is added yet.
    """

    def __init__(self, queries: Iterable[str]) -> None:
        self.queries: list[str] = []
        self._frequency = Counter(word for text in queries for word in set(words(text)))
        self._words: list[set[str]] = []
        self._equal: dict[str, int] = {}
        self._by_word: dict[str, list[int]] = defaultdict(list)

    def add(self, query: str) -> None:
        """Adds a query; of equal ones, the last is found."""
        number, mine = len(self.queries), set(words(query))
        self.queries.append(query)
        self._words.append(mine)
        self._equal[query_key(query)] = number
        for word in self._rarest(mine):
            self._by_word[word].append(number)

    def find(self, query: str) -> tuple[int, bool] | None:
        """The number of an added query that this one is too close to, and whether the two are equal."""
        found = self._equal.get(query_key(query))
        if found is not None:
            return found, True
        return next(((number, False) for number in self._close(query)), None)

    def near(self, query: str) -> list[int]:
        """The numbers of all added queries that equal or nearly equal this one; of equal ones, the last."""
        equal = self._equal.get(query_key(query))
        return sorted({*self._close(query), *([] if equal is None else [equal])})

    def _close(self, query: str) -> Iterator[int]:
        mine = set(words(query))
        for word in self._rarest(mine):
            for number in self._by_word.get(word, ()):
                if close(mine, self._words[number]):
                    yield number

    def _rarest(self, some: set[str]) -> list[str]:
        # At least ceil(CLOSE * n) of n words are shared, so one of any n - ceil(CLOSE * n) + 1 is.
        shared = math.ceil(CLOSE * len(some) - 1e-9)
        return sorted(some, key=lambda word: (self._frequency[word], word))[: len(some) - shared + 1]


def first_of_kind(queries: Sequence[str]) -> list[bool]:
    """For each query, whether no earlier one that was kept equals or nearly equals it."""
    index = QueryIndex(queries)
    kept = []
    for query in queries:
        kept.append(index.find(query) is None)
        if kept[-1]:
            index.add(query)
    return kept
