"""Every example runs as a user would run it, offline, and prints what it promises."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
# Something that only a run which did its job prints.
OUTPUT = {
    "quickstart.py": r"(?s)penicillin.*thought: .*0\.\d{3}  Antibiotics kill.*savings.*0\.\d{3}  Compound interest",
    "faiss_search.py": r"(?s)\d{2,} entries.*copy a file.*0\.\d{3}  shutil\.copy",
    "compare_reasoning.py": r"(?s)leaves.*chlorophyll +\+0\.\d+ direct +\+0\.\d+ reasoning.*wrote reasoning.png",
    "langchain_rag.py": r"(?s)\d{2,} passages.*random element.*random\.(choice|sample).*folder\n  shutil\.rmtree",
    "llamaindex_rag.py": r"(?s)\d{2} passages of LICENSE.*patents.*0\.\d{3}  .*patent litigation.*damages",
    "chroma_persistent.py": r"(?s)5 notes in notes\.chroma.*internet.*0\.\d{3}  router: .*0\.\d{3}  passport: ",
    "keep_your_index.py": r"(?s)The index is valid.*deck\n  thought: .*before 0\.\d{3}  random\.shuffle +after 0",
    "hybrid_search.py": r"(?s)\d{2,} entries.*words: pick.*0\.03\d+  \(words +\d+, meaning +\d+\)  random\.choice",
    "agent_search.py": r"(?s)thought: The random module.*found: random\.choice.*answer: See the first passage",
    "adapt_to_your_corpus.py": r"(?s)\d+ documents.*nDCG@10 of the kept.*\d+ vectors, 0 of them changed.*after ",
    "async_server_load.py": r"(?s)one by one .* p95 .* ms.*all at once .* p99 .* ms",
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(OUTPUT)


@pytest.mark.parametrize("name", sorted(OUTPUT))
def test_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    output = capsys.readouterr().out
    assert re.search(OUTPUT[name], output), output
    if name == "chroma_persistent.py":
        assert (tmp_path / "notes.chroma").is_dir()
    if name == "compare_reasoning.py":
        assert (tmp_path / "reasoning.png").read_bytes().startswith(b"\x89PNG")
