"""Vectors that are there already: read, matched by id, refused where another encoder made them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.adapt.corpus import documents_of, vectors_of
from searchr3_embed.adapt.vector_sources import Columns, read_vectors

TEXTS = {"a": "a river of ice", "b": "a csv file", "c": "the heart pumps blood"}
DOCUMENTS = documents_of(TEXTS)


@pytest.fixture(scope="module")
def embedder(encoder: Path) -> ReasoningEmbedder:
    return ReasoningEmbedder.from_encoder(encoder, device="cpu")


@pytest.fixture(scope="module")
def vectors(embedder: ReasoningEmbedder) -> np.ndarray:
    return embedder.encode_document(list(TEXTS.values()))


def test_npy_is_in_the_documents_order(embedder: ReasoningEmbedder, vectors: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", vectors)
    found, origin = vectors_of(embedder, DOCUMENTS, read_vectors(str(tmp_path / "v.npy")), None)
    assert np.array_equal(found, vectors) and list(origin.values()) == [3]
    np.save(tmp_path / "v.npy", vectors[:2])
    with pytest.raises(ValueError, match="holds 2 vectors, but there are 3 documents"):
        vectors_of(embedder, DOCUMENTS, read_vectors(str(tmp_path / "v.npy")), None)


def test_parquet_is_matched_by_id_and_the_rest_embedded(
    embedder: ReasoningEmbedder, vectors: np.ndarray, tmp_path: Path
) -> None:
    table = pa.table(
        {"id": ["c", "x", "a"], "vector": [vectors[2].tolist(), vectors[1].tolist(), vectors[0].tolist()]}
    )
    pq.write_table(table, tmp_path / "v.parquet")
    spec = str(tmp_path / "v.parquet")
    found, origin = vectors_of(embedder, DOCUMENTS, read_vectors(spec), None)
    np.testing.assert_allclose(found, vectors, atol=1e-6)
    assert dict(origin) == {f"from {spec}": 2, f"in {spec} for other documents": 1, "embedded now": 1}
    with pytest.raises(ValueError, match="no column 'key' .*--id-column"):
        read_vectors(spec, Columns("key"))


def test_vectors_of_another_encoder_are_refused(
    embedder: ReasoningEmbedder, vectors: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "v.npy", vectors[::-1])
    with pytest.raises(ValueError, match="was not made by"):
        vectors_of(embedder, DOCUMENTS, read_vectors(str(tmp_path / "v.npy")), None)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("v.csv", "no source of vectors; accepted are FILE.npy"),
        ("lancedb:folder", "expected lancedb:PLACE#NAME"),
        ("bad.npy", "no array of numbers"),
        ("flat.npy", "expected vectors, an array of shape"),
        ("bad.parquet", "no Parquet file"),
        ("ragged.parquet", "vectors of one length"),
    ],
)
def test_bad_sources(spec: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("bad.npy", "bad.parquet"):
        Path(name).write_text("nothing")
    np.save("flat.npy", np.ones(3))
    pq.write_table(pa.table({"id": ["a", "b"], "vector": [[1.0], [1.0, 2.0]]}), "ragged.parquet")
    with pytest.raises(ValueError, match=words):
        read_vectors(spec)


@pytest.mark.parametrize(
    ("spec", "package"),
    [("lancedb:.#t", "lancedb"), ("qdrant:.#t", "qdrant-client"), ("pgvector:x#t", "psycopg")],
)
def test_a_missing_client_is_named_with_the_command(spec: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("searchr3_embed.adapt.vector_sources.importlib.import_module", missing)
    with pytest.raises(ImportError, match="pip install .*" + package):
        read_vectors(spec)


@pytest.mark.skipif(importlib.util.find_spec("lancedb") is None, reason="lancedb is not installed")
def test_lancedb(embedder: ReasoningEmbedder, vectors: np.ndarray, tmp_path: Path) -> None:
    import lancedb

    rows = [{"id": name, "vector": vector.tolist()} for name, vector in zip(TEXTS, vectors, strict=True)]
    lancedb.connect(tmp_path).create_table("documents", rows[::-1])
    found, _ = vectors_of(embedder, DOCUMENTS, read_vectors(f"lancedb:{tmp_path}#documents"), None)
    np.testing.assert_allclose(found, vectors, atol=1e-6)
    with pytest.raises(ValueError, match="'other' can't be read"):
        read_vectors(f"lancedb:{tmp_path}#other")


@pytest.mark.skipif(importlib.util.find_spec("qdrant_client") is None, reason="qdrant-client is not installed")
def test_qdrant(embedder: ReasoningEmbedder, vectors: np.ndarray, tmp_path: Path) -> None:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, PointStruct, VectorParams

    client = QdrantClient(path=str(tmp_path))
    client.create_collection("documents", vectors_config=VectorParams(size=vectors.shape[1], distance=Distance.COSINE))
    points = [
        PointStruct(id=number, vector=vector.tolist(), payload={"id": name})
        for number, (name, vector) in enumerate(zip(TEXTS, vectors, strict=True))
    ]
    client.upsert("documents", points)
    client.close()
    found, _ = vectors_of(embedder, DOCUMENTS, read_vectors(f"qdrant:{tmp_path}#documents"), None)
    np.testing.assert_allclose(found, vectors, atol=1e-6)
    with pytest.raises(ValueError, match="'other' can't be read"):
        read_vectors(f"qdrant:{tmp_path}#other")
