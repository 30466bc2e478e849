"""Indexes that others made are kept: the recipes of integrations/README.md run, and what they say holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.api.types import DefaultEmbeddingFunction
from chromadb.utils import embedding_functions
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_searchr3 import SearchR3Embeddings
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.embeddings.searchr3 import SearchR3Embedding
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoint import locate
from searchr3_embed.chroma import SearchR3EmbeddingFunction
from tests import joined, tiny
from training.evaluate.models import teacher_source

RECIPES = Path(__file__).parents[2] / "integrations" / "README.md"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
LINES = ["a glacier is\na slow river of ice", "interest rates rise", "the heart\n\npumps blood through arteries"]


def snippets() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", RECIPES.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def keeps_minilm() -> Path:
    """A checkpoint that has the vectors of all-MiniLM-L6-v2 and moves questions."""
    return locate.packaged_folder()


@pytest.fixture
def stands_for_onnx(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Chroma's default function downloads its model; this gives it the vectors of another encoder."""

    def use(folder: str | Path) -> None:
        stock = SentenceTransformer(str(folder), device="cpu")
        monkeypatch.setattr(DefaultEmbeddingFunction, "__call__", lambda self, input: list(stock.encode(list(input))))

    return use


def test_there_are_three_recipes() -> None:
    assert len(snippets()) == 3


@pytest.mark.parametrize("number", range(3))
def test_recipe(
    number: int,
    keeps_minilm: Path,
    stands_for_onnx: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(locate, "packaged_folder", lambda: keeps_minilm)
    monkeypatch.chdir(tmp_path)
    body = snippets()[number]
    if "chromadb" in body:
        stands_for_onnx(teacher_source())
    exec(compile(body.replace(MINILM, teacher_source()), str(RECIPES), "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print.*\n# (.*)$", body, re.MULTILINE)


def test_what_the_stock_classes_embedded_is_valid_line_breaks_included(
    encoder_folder: Path, joined_checkpoint: Path
) -> None:
    embedder = ReasoningEmbedder(joined_checkpoint, device="cpu")
    former = HuggingFaceEmbeddings(model_name=str(encoder_folder), model_kwargs={"device": "cpu"})
    assert embedder.check_index(LINES, former.embed_documents(LINES)).lowest_cosine > 0.99999
    other = HuggingFaceEmbedding(str(encoder_folder), device="cpu")
    assert embedder.check_index(LINES, other.get_text_embedding_batch(LINES)).lowest_cosine > 0.99999
    assert not embedder.check_index(LINES, former.embed_documents(LINES[::-1]))
    expected = former.embed_documents(LINES)
    ours = SearchR3Embeddings(model=str(joined_checkpoint), device="cpu").embed_documents(LINES)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    ours = SearchR3Embedding(model_name=str(joined_checkpoint), device="cpu").get_text_embedding_batch(LINES)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_an_index_without_the_encoders_prompts(encoder_folder: Path, tmp_path: Path) -> None:
    prompted = SentenceTransformer(str(encoder_folder), device="cpu")
    prompted.prompts = {"query": "how ", "document": "the "}
    prompted.save_pretrained(str(tmp_path / "prompted"))
    embedder = ReasoningEmbedder(joined.save_joined(tmp_path / "prompted", tmp_path / "joined"), device="cpu")
    former = HuggingFaceEmbeddings(model_name=str(tmp_path / "prompted"), model_kwargs={"device": "cpu"})
    index = former.embed_documents(tiny.CORPUS)

    assert not embedder.check_index(tiny.CORPUS, index)
    embedder.prompts = {"query": "", "document": ""}
    assert embedder.check_index(tiny.CORPUS, index)
    np.testing.assert_allclose(embedder.encode_query("ice", reason=False), former.embed_query("ice"), atol=1e-6)


def test_vectors_keep_their_length_in_langchain(tmp_path: Path) -> None:
    plain = joined.save_encoder(tmp_path / "plain", normalise=False)
    folder = str(joined.save_joined(plain, tmp_path / "joined"))
    former = HuggingFaceEmbeddings(model_name=str(plain), model_kwargs={"device": "cpu"})
    ours = SearchR3Embeddings(model=folder, device="cpu")
    np.testing.assert_allclose(ours.embed_documents(LINES), former.embed_documents(LINES), atol=1e-5)
    lengths = np.linalg.norm(
        SearchR3Embeddings(model=folder, device="cpu", normalize=True).embed_documents(LINES), axis=1
    )
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_a_collection_of_chromas_default_function(
    encoder_folder: Path, joined_checkpoint: Path, stands_for_onnx: Any, tmp_path: Path
) -> None:
    stands_for_onnx(encoder_folder)
    client = chromadb.PersistentClient(str(tmp_path))
    client.create_collection("notes").add(ids=["0", "1", "2"], documents=LINES)
    question = "how does a glacier move"

    with pytest.raises(ValueError, match="new: searchr3 vs persisted: default"):
        client.get_collection("notes", embedding_function=SearchR3EmbeddingFunction(str(joined_checkpoint)))

    thinking = SearchR3EmbeddingFunction(str(joined_checkpoint), device="cpu", stored_as="default")
    for notes in (
        client.get_collection("notes", embedding_function=thinking),
        client.get_or_create_collection("notes", embedding_function=thinking),
    ):
        thinking.check(notes)
        found = notes.query(query_texts=[question])
        expected = client.get_collection("notes").query(query_embeddings=thinking.embedder.encode_query([question]))
        assert found["ids"] == expected["ids"]
        np.testing.assert_allclose(found["distances"], expected["distances"], atol=1e-5)
    assert embedding_functions.known_embedding_functions["default"] is DefaultEmbeddingFunction

    direct = SearchR3EmbeddingFunction(str(joined_checkpoint), device="cpu", stored_as="default", reason_queries=False)
    former = client.get_collection("notes").query(query_texts=[question])["distances"]
    same = client.get_collection("notes", embedding_function=direct).query(query_texts=[question])["distances"]
    np.testing.assert_allclose(same, former, atol=1e-5)
    assert not np.allclose(found["distances"], former, atol=1e-3)

    notes.add(ids=["3"], documents=["rivers of ice"])
    kept = notes.get(ids=["3"], include=["embeddings"])["embeddings"]
    np.testing.assert_allclose(kept, DefaultEmbeddingFunction()(["rivers of ice"]), atol=1e-5)


def test_chroma_opens_a_new_collection_by_itself(joined_checkpoint: Path, tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path))
    function = SearchR3EmbeddingFunction(str(joined_checkpoint), max_reasoning_tokens=3)
    notes = client.create_collection("notes", embedding_function=function)
    notes.add(ids=["0", "1", "2"], documents=LINES)

    reopened = client.get_collection("notes")
    assert reopened.configuration_json["hnsw"]["space"] == "cosine"
    expected = notes.query(query_texts=["ice"])
    assert reopened.query(query_texts=["ice"])["distances"] == expected["distances"]
    with pytest.raises(ValueError, match="documents are of"):
        notes.modify(configuration={"embedding_function": SearchR3EmbeddingFunction("another")})


def test_chroma_says_whose_vectors_a_collection_has(
    joined_checkpoint: Path, mini_checkpoint: Path, tmp_path: Path
) -> None:
    client = chromadb.PersistentClient(str(tmp_path))
    function = SearchR3EmbeddingFunction(str(joined_checkpoint), device="cpu")
    notes = client.create_collection("notes", embedding_function=function)
    with pytest.raises(ValueError, match="'notes' holds no documents"):
        function.check(notes)
    notes.add(ids=["0", "1", "2"], documents=LINES)
    function.check(notes)
    with pytest.raises(ValueError, match="'notes': The index was not made by"):
        SearchR3EmbeddingFunction(str(mini_checkpoint), device="cpu").check(notes)
