"""Files of records and BEIR folders out of a few values, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Rows = list[dict[str, Any]]
# Few words, so that equal and nearly equal texts are common.
phrases = st.lists(st.sampled_from("a b c d e f g h i j".split()), min_size=1, max_size=9).map(" ".join)


def write_rows(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_set(folder: Path, queries: dict[str, str], documents: dict[str, str], **qrels: str) -> Path:
    """A BEIR-layout folder; ``qrels`` maps a split to "query document score" lines."""
    write_rows(folder / "corpus.jsonl", [{"_id": i, "title": "", "text": text} for i, text in documents.items()])
    write_rows(folder / "queries.jsonl", [{"_id": i, "text": text} for i, text in queries.items()])
    (folder / "qrels").mkdir()
    for split, lines in qrels.items():
        table = "".join(line.strip().replace(" ", "\t") + "\n" for line in lines.splitlines())
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + table)
    return folder
