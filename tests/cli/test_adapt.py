"""``searchr3 adapt``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.adapt import adapting
from searchr3_embed.adapt.learner import Candidate, Schedule
from tests.adapt import small_corpus
from tests.cli.command import Command


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates for the few random weights of the small models."""
    original = adapting.learner_of

    def learner_of(*args: object) -> object:
        learner = original(*args)  # type: ignore[arg-type]
        learner.schedule = Schedule((Candidate(1e-3, 1.0),), every=10, most_steps=100)
        return learner

    monkeypatch.setattr(adapting, "learner_of", learner_of)


def test_the_whole_command(command: Command, encoder: Path, tmp_path: Path) -> None:
    corpus, questions = small_corpus.write(tmp_path, small_corpus.pairs())
    with questions.open("a") as file:
        file.write(json.dumps({"question": "who?", "chosen": "gone"}) + "\n")
    options = ("--documents", corpus, "--queries", questions, "--encoder", encoder, "--train", "projection")
    out = tmp_path / "mine"
    code, printed, err = command("adapt", *options, "--out", out, "--cache-folder", command.cache)
    assert code == 0, err
    lines = printed.splitlines()
    assert lines[0] == "60 documents (60 embedded now); 48 questions to learn from, 12 kept apart"
    assert lines[1].startswith("left out: 1 document not in the corpus") and "gone" in lines[1]
    assert lines[2].startswith("note: 60 questions are few")
    assert lines[-1] == f"better: the model is in {out}"
    report = json.loads((out / "report.json").read_text())
    assert report["better"] and report["after"] > report["before"] == report["encoder_ndcg"]
    assert report["gained"] and all(row["after"] > row["before"] for row in report["gained"])
    assert (out / "adapt.png").read_bytes().startswith(b"\x89PNG")
    card = (out / "README.md").read_text()
    assert "adapted to a corpus" in card and f"{report['after']:.4f}" in card
    assert not (tmp_path / "mine.adapting").exists()
    (projection,) = (path for path in out.rglob("*Dense*/model.safetensors"))
    assert projection.stat().st_size < 1_000_000

    texts = list(small_corpus.documents().values())
    adapted, stock = ReasoningEmbedder(out, device="cpu"), SentenceTransformer(str(out), device="cpu")
    np.testing.assert_allclose(stock.encode_query(texts), adapted.encode_query(texts), atol=1e-5)
    # The vectors that the command kept are those of the model that it wrote.
    code, _, err = command("search", corpus, "paris", "--model", out)
    assert code == 0 and "vectors from the cache" in err


def test_nothing_to_learn_writes_nothing(command: Command, encoder: Path, tmp_path: Path) -> None:
    corpus, questions = small_corpus.write(tmp_path, small_corpus.random_pairs())
    options = ("--documents", corpus, "--queries", questions, "--encoder", encoder, "--train", "projection")
    code, printed, _ = command("adapt", *options, "--out", tmp_path / "mine", "--cache-folder", command.cache)
    assert code == 0 and printed.splitlines()[-1].startswith("not better, nothing written")
    assert {path.name for path in tmp_path.iterdir()} - {"cache"} == {"corpus.jsonl", "pairs.jsonl"}


def test_without_pairs_it_asks_with_sentences(command: Command, encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for number, text in enumerate(small_corpus.documents(20).values()):
        (folder / f"{number}.md").write_text(
            f"The {text} of number {number} is here. Other words about it follow, at the least ten of them, {text}."
        )
    options = ("--documents", folder, "--from-text", "--encoder", encoder, "--train", "projection", "--keep-anyway")
    code, printed, err = command("adapt", *options, "--out", tmp_path / "m", "--cache-folder", command.cache)
    assert code == 0, err
    assert "sentences of the corpus are weaker" in printed
    assert json.loads((tmp_path / "m" / "report.json").read_text())["pairs"] == "from the text"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--queries", "pairs.jsonl", "--llm", "x"], "--synthesise and --llm belong together"),
        (["--synthesise", "http://localhost/v1"], "--synthesise and --llm belong together"),
        (["--queries", "pairs.jsonl", "--thinker", "x"], "--thinker is for --encoder"),
        (["--queries", "pairs.jsonl", "--encoder", "e", "--thinker", "x"], "--train question-encoder has none"),
        (["--queries", "none.jsonl"], "none.jsonl"),
        (["--queries", "pairs.jsonl", "--minutes", "0"], "minutes must be above 0"),
        (["--queries", "pairs.jsonl", "--train", "all"], "invalid choice: 'all'"),
        (["--queries", "pairs.jsonl", "--vectors", "x.csv"], "no source of vectors"),
        (["--queries", "pairs.jsonl", "--from-text"], "not allowed with"),
        ([], "one of the arguments"),
    ],
)
def test_bad_input(
    command: Command, options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_corpus.write(tmp_path, small_corpus.pairs(12))
    monkeypatch.chdir(tmp_path)
    assert words in command.fails("adapt", "--documents", "corpus.jsonl", "--out", "mine", *options)
    assert not Path("mine").exists() and not Path("mine.adapting").exists()


@pytest.mark.slow
def test_a_killed_command_goes_on(encoder: Path, tmp_path: Path) -> None:
    """A process that is killed while it trains, and the same command again."""
    corpus, questions = small_corpus.write(tmp_path, small_corpus.pairs())
    options = ["--documents", corpus, "--queries", questions, "--encoder", encoder, "--keep-anyway"]
    out, state = tmp_path / "mine", tmp_path / "mine.adapting" / "adapt.state"
    words = ["adapt", *options, "--out", out, "--cache-folder", tmp_path / "cache", "--train", "projection"]
    script = (
        "import sys; from searchr3_embed.adapt import grid; grid._SAVE_EVERY = 0.0\n"
        "from searchr3_embed.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *map(str, words)]
    with subprocess.Popen([*command, "--minutes", "5"], stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not state.exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.kill()
    assert state.exists() and not out.exists()
    again = subprocess.run([*command, "--minutes", "0.05"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "begins anew" not in again.stderr
    assert (out / "report.json").is_file() and not state.exists()
