"""Document vectors that somebody has already: a .npy or Parquet file, LanceDB, Qdrant, or Postgres with pgvector.

The clients of the stores are asked for when a store is read; the library does not depend on them.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from searchr3_embed.adapt.corpus import Documents
from searchr3_embed.files import first_line

FORMS = (
    "FILE.npy (rows in the order of the documents), FILE.parquet, lancedb:FOLDER#TABLE, "
    "qdrant:FOLDER_OR_URL#COLLECTION or pgvector:CONNECTION#TABLE"
)
# Rows that a store is asked for at once.
_ROWS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of the columns of a store."""

    id: str = "id"
    vector: str = "vector"


@dataclasses.dataclass(frozen=True)
class StoredVectors:
    """Vectors and what they belong to.

    Attributes:
        name: For messages.
        vectors: Shape (rows, dimension).
        ids: Of the rows; None where the rows are in the order of the documents.
    """

    name: str
    vectors: np.ndarray
    ids: tuple[str, ...] | None

    def rows_for(self, documents: Documents) -> dict[int, np.ndarray]:
        """The vector of each document that has one, by the document's row.

        Raises:
            ValueError: Without ids, the numbers of rows and documents differ; or no id is one of a document.
        """
        if self.ids is None:
            if len(self.vectors) != len(documents.ids):
                raise ValueError(
                    f"{self.name} holds {len(self.vectors)} vectors, but there are {len(documents.ids)} documents; "
                    "vectors without ids must be in the order of the documents."
                )
            return dict(enumerate(self.vectors))
        found = {
            documents.by_id[name]: vector
            for name, vector in zip(self.ids, self.vectors, strict=True)
            if name in documents.by_id
        }
        if not found:
            raise ValueError(
                f"{self.name}: none of its {len(self.ids)} ids is that of a document; its first is "
                f"{self.ids[0] if self.ids else 'missing'!r}, the first document's {documents.ids[0]!r}."
            )
        return found


def read_vectors(spec: str, columns: Columns | None = None) -> StoredVectors:
    """Reads stored vectors.

    Args:
        spec: One of :data:`FORMS`.
        columns: The names of the columns, where the source has such.

    Raises:
        ValueError: The source is of another form, damaged, or holds no such columns.
        ImportError: The client of a store is not installed; the message names the command.
        OSError: A file can't be read.
    """
    columns = columns or Columns()
    ids: list[Any] | None
    vectors: Any
    kind, colon, place = spec.partition(":")
    if colon and kind in _STORES:
        where, hash_sign, table = place.rpartition("#")
        if not hash_sign or not where or not table:
            raise ValueError(f"{spec!r}: expected {kind}:PLACE#NAME, such as {_EXAMPLES[kind]}.")
        ids, vectors = _STORES[kind](where, table, columns)
    elif spec.endswith(".npy"):
        ids, vectors = None, _npy(Path(spec))
    elif spec.endswith(".parquet"):
        ids, vectors = _parquet(Path(spec), columns)
    else:
        raise ValueError(f"{spec!r} is no source of vectors; accepted are {FORMS}.")
    if isinstance(vectors, list):
        lengths = {len(vector) if vector is not None else 0 for vector in vectors}
        if len(lengths) != 1:
            raise ValueError(f"{spec}: expected vectors of one length in {columns.vector!r}, found {sorted(lengths)}.")
    found = np.asarray(vectors, dtype=np.float32)
    if found.ndim != 2 or not found.size:
        raise ValueError(f"{spec}: expected vectors, an array of shape (rows, dimension), found {found.shape}.")
    return StoredVectors(spec, found, None if ids is None else tuple(map(str, ids)))


def _npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: no array of numbers ({first_line(error)}).") from error


def _parquet(path: Path, columns: Columns) -> tuple[list[Any], list[Any]]:
    parquet = _client("pyarrow.parquet", "pyarrow")
    if not path.is_file():
        raise FileNotFoundError(2, "No such file", str(path))
    try:
        table = parquet.read_table(path)
    except Exception as error:  # pyarrow's kinds
        raise ValueError(f"{path}: no Parquet file ({first_line(error)}).") from error
    _check_columns(str(path), table.column_names, columns)
    return table.column(columns.id).to_pylist(), table.column(columns.vector).to_pylist()


def _lancedb(where: str, table: str, columns: Columns) -> tuple[list[Any], list[Any]]:
    lancedb = _client("lancedb", "lancedb")
    if "://" not in where and not Path(where).is_dir():
        raise FileNotFoundError(2, "No such folder", where)
    try:
        rows = lancedb.connect(where).open_table(table).to_arrow()
    except Exception as error:  # its own kinds, and plain RuntimeError
        raise ValueError(f"lancedb:{where}: the table {table!r} can't be read ({first_line(error)}).") from error
    _check_columns(f"lancedb:{where}#{table}", rows.column_names, columns)
    return rows.column(columns.id).to_pylist(), rows.column(columns.vector).to_pylist()


def _qdrant(where: str, collection: str, columns: Columns) -> tuple[list[Any], list[Any]]:
    """Ids are taken from the payload where it has the column, else they are the points' own."""
    qdrant = _client("qdrant_client", "qdrant-client")
    remote = "://" in where
    if not remote and not Path(where).is_dir():
        raise FileNotFoundError(2, "No such folder", where)
    ids: list[Any] = []
    vectors: list[Any] = []
    try:
        client = qdrant.QdrantClient(url=where) if remote else qdrant.QdrantClient(path=where)
        try:
            offset = None
            while True:
                points, offset = client.scroll(
                    collection, limit=_ROWS_AT_ONCE, offset=offset, with_vectors=True, with_payload=True
                )
                for point in points:
                    ids.append((point.payload or {}).get(columns.id, point.id))
                    named = isinstance(point.vector, dict)
                    vectors.append(point.vector.get(columns.vector) if named else point.vector)
                if offset is None:
                    break
        finally:
            client.close()
    except Exception as error:  # of the client, of HTTP, of the collection
        raise ValueError(
            f"qdrant:{where}: the collection {collection!r} can't be read ({first_line(error)})."
        ) from error
    if any(vector is None for vector in vectors):
        raise ValueError(f"qdrant:{where}#{collection}: a point has no vector {columns.vector!r}.")
    return ids, vectors


def _pgvector(where: str, table: str, columns: Columns) -> tuple[list[Any], list[Any]]:
    psycopg = _client("psycopg", "psycopg[binary]")
    name = table.split(".")
    for part in (*name, columns.id, columns.vector):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]*", part):
            raise ValueError(f"pgvector: {part!r} is no name of a table or column.")
    quoted = [".".join(f'"{part}"' for part in name), f'"{columns.id}"', f'"{columns.vector}"']
    ids: list[Any] = []
    vectors: list[Any] = []
    try:
        with psycopg.connect(where) as connection, connection.cursor("vectors") as cursor:
            # As text the type needs no adapter: [1,2,3] is JSON.
            cursor.execute(f"SELECT {quoted[1]}, {quoted[2]}::text FROM {quoted[0]}")  # names matched above  # nosec B608
            for identifier, text in cursor:
                ids.append(identifier)
                vectors.append(json.loads(text))
    except psycopg.Error as error:
        # Not the connection string: it may hold a password.
        raise ValueError(f"pgvector: the table {table!r} can't be read ({first_line(error)}).") from error
    return ids, vectors


def _check_columns(name: str, found: list[str], columns: Columns) -> None:
    for column in (columns.id, columns.vector):
        if column not in found:
            raise ValueError(
                f"{name} has no column {column!r} (it has {', '.join(map(repr, found))}); name it by --id-column or "
                "--vector-column."
            )


def _client(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'These vectors are read by {module}, which is not installed. Run: pip install "{package}"'
        ) from error


_Reader = Callable[[str, str, Columns], tuple[list[Any], list[Any]]]
_STORES: dict[str, _Reader] = {"lancedb": _lancedb, "qdrant": _qdrant, "pgvector": _pgvector}
_EXAMPLES = {
    "lancedb": "lancedb:./store#documents",
    "qdrant": "qdrant:http://localhost:6333#documents",
    "pgvector": "pgvector:postgresql://localhost/db#documents",
}
