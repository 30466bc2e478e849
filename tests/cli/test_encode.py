"""``searchr3 encode``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from searchr3_embed import ReasoningEmbedder
from tests.cli.command import Command, stdin


def test_encode_lines_to_npy(command: Command, embedder: ReasoningEmbedder, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes("\ufeffone\r\n\nthrée".encode())
    code, out, err = command("encode", tmp_path / "texts.txt", "-o", tmp_path / "v.npy")
    assert (code, out) == (0, "")
    assert err.startswith("3 vectors of 32 numbers in ")

    vectors = np.load(tmp_path / "v.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, embedder.encode(["one", "", "thrée"]), atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt", "v.npy", "v.npy.encoder.json"], (
        "no temporary file stays"
    )

    (tmp_path / "texts.txt").write_text("other")
    assert command("encode", tmp_path / "texts.txt", "-o", tmp_path / "v.npy", "--force").code == 0
    assert np.load(tmp_path / "v.npy").shape == (1, 32)


def test_vectors_know_their_encoder(
    command: Command, joined_checkpoint: Path, qwen2_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("one\ntwo")
    documents, queries = tmp_path / "d.npy", tmp_path / "q.npy"
    encode = ("encode", tmp_path / "texts.txt", "--model")
    assert command(*encode, joined_checkpoint, "--as", "document", "-o", documents).code == 0
    assert json.loads((tmp_path / "d.npy.encoder.json").read_text())["encoder"] == "encoder"

    code, _, err = command(*encode, joined_checkpoint, "--as", "query", "-o", queries, "--for", documents)
    assert code == 0 and "warning" not in err
    message = command.fails(*encode, qwen2_checkpoint, "-o", tmp_path / "other.npy", "--for", documents)
    assert f"--for {documents}: its vectors are of 'encoder'" in message and not (tmp_path / "other.npy").exists()

    (tmp_path / "d.npy.encoder.json").unlink()
    code, _, err = command(*encode, joined_checkpoint, "-o", queries, "--for", documents, "--force")
    assert code == 0 and "vectors of 0.1.0 are of another space" in err
    (tmp_path / "d.npy.encoder.json").write_text("[]")
    assert "no note of an encoder" in command.fails(*encode, joined_checkpoint, "-o", "x.npy", "--for", documents)
    assert "no such file" in command.fails(*encode, joined_checkpoint, "-o", "x.npy", "--for", "nowhere.npy")


def test_encode_jsonl_keeps_ids_and_text(command: Command, embedder: ReasoningEmbedder, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "a", "q": "naïve"}\n{"q": "two"}\n', encoding="utf-8")
    run = command("encode", tmp_path / "in.jsonl", "--field", "q", "--as", "query", "-o", tmp_path / "out.jsonl")
    assert run.code == 0

    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(record["id"], record["text"]) for record in records] == [("a", "naïve"), ("2", "two")]
    expected = embedder.encode_query(["naïve", "two"])
    np.testing.assert_allclose([record["embedding"] for record in records], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--as", "query"], True),
        (["--as", "query", "--no-reason"], False),
        (["--as", "document"], False),
        ([], False),
        (["--reason"], True),
    ],
)
def test_encode_thinks_about_queries_only(
    command: Command,
    embedder: ReasoningEmbedder,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    reason: bool,
) -> None:
    stdin(monkeypatch, "why is the sky blüe\n".encode())
    code, out, err = command("encode", "-", *options)
    assert (code, err) == (0, "")
    (record,) = map(json.loads, out.splitlines())
    assert record["text"] == "why is the sky blüe" and "id" not in record
    expected = embedder.encode(record["text"], reason=reason)
    np.testing.assert_allclose(record["embedding"], expected, atol=1e-6)


def test_encode_jsonl_from_stdin(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b'{"text": "one"}\n{"text"\n')
    assert "standard input:2: not JSON" in command.fails("encode", "-", "--format", "jsonl")


def test_a_text_that_is_too_long_is_one_line_of_warning(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"short\n" + b"long " * 500)
    code, out, err = command("encode", "-")
    assert code == 0 and len(out.splitlines()) == 2
    assert err.startswith("searchr3: warning: 1 of 2 texts ") and err.count("\n") == 1
