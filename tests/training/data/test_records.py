"""A record's file, and what makes a record useless."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3_embed.adapt.same_text import query_key
from tests.training.data.rows import phrases
from training.data.records import Record, clean, deduplicate, read_records, write_records


def test_killed_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    write_records(path, [Record("q", ("p",), (), "s")])

    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_records(path, [Record("other", ("p",), (), "s")])
    assert [r.query for r in read_records(path)] == ["q"]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)
some_records = st.lists(
    st.builds(
        Record,
        texts,
        st.lists(texts, min_size=1, max_size=3).map(tuple),
        st.lists(texts, max_size=3).map(tuple),
        texts,
        st.none() | st.just("") | texts,
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40)
@given(some_records, st.booleans())
def test_written_is_read(rows: list[Record], zipped: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("rows.jsonl.gz" if zipped else "rows.jsonl")
        write_records(path, rows)
        content = path.read_bytes()
        assert read_records(path) == rows
        write_records(path, rows)
        assert path.read_bytes() == content


@given(
    st.lists(
        st.builds(Record, phrases, st.lists(phrases, min_size=1, max_size=3).map(tuple), st.just(()), st.just("s")),
        max_size=8,
    )
)
def test_deduplication_is_idempotent_and_loses_no_pair(rows: list[Record]) -> None:
    def identity(record: Record) -> tuple[str, frozenset[str]]:
        return query_key(record.query), frozenset(record.positives)

    once = deduplicate(rows)
    assert deduplicate(once) == once
    assert [identity(r) for r in once] == list(dict.fromkeys(identity(r) for r in rows))


@given(st.builds(Record, phrases, *[st.lists(phrases, min_size=1, max_size=9).map(tuple)] * 2, st.just("s")))
def test_cleaning_is_idempotent_and_keeps_sides_apart(row: Record) -> None:
    counts: Counter[str] = Counter()
    cleaned = clean(row, counts)
    if cleaned is None:
        assert counts == {"record whose only positive is the query": 1}
        return
    assert clean(cleaned, Counter()) == cleaned
    assert not set(cleaned.positives) & {*cleaned.negatives, cleaned.query}
    lost = len(row.positives + row.negatives) - len(cleaned.positives + cleaned.negatives)
    assert counts.total() == lost
