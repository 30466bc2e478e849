"""A retrieval set of six documents and four queries, for tests."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

DOCUMENTS = {
    "d1": ("Tides", "The moon pulls the oceans, so the water rises twice a day."),
    "d2": ("", "A violin has four strings and is played with a bow."),
    "d3": ("Bread", "Yeast makes the dough rise before it goes into the oven."),
    "d4": ("Volcano", "Molten rock reaches the surface and cools to lava fields."),
    "d5": ("", "The cello is a larger string instrument than the violin."),
    "d6": ("Glacier", "Ice moves slowly downhill and carves valleys."),
}
QUERIES = {
    "q1": "why does the ocean water rise twice a day",
    "q2": "violin strings",
    "q3": "what makes dough rise",
    "q4": "how do glaciers carve valleys",
}
QRELS = [("q1", "d1", 1), ("q2", "d2", 1), ("q2", "d5", 1), ("q3", "d3", 1), ("q4", "d6", 1), ("q4", "d4", 0)]


def write_beir(folder: Path, zipped: bool = True, nested: bool = False) -> Path:
    """Writes the toy set, with the small lists and a dev split."""
    folder.mkdir(parents=True)
    corpus = [{"_id": i, "title": title, "text": text} for i, (title, text) in DOCUMENTS.items()]
    queries = [{"_id": i, "text": text} for i, text in QUERIES.items()]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path = folder / f"{name}.jsonl{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)
    lines = "".join(f"{q}\t{d}\t{s}\n" for q, d, s in QRELS)
    qrels = folder / "qrels" / "test.tsv" if nested else folder / "qrels.tsv"
    qrels.parent.mkdir(exist_ok=True)
    qrels.write_text("query-id\tcorpus-id\tscore\n" + lines)
    (folder / "qrels_dev.tsv").write_text("q3\td3\t1\n")
    (folder / "queries_150.txt").write_text("q3\nq1\n")
    (folder / "docs_small.txt").write_text("d1\nd3\nd4\n")
    return folder
