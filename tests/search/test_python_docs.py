"""Python's own documentation as passages."""

from __future__ import annotations

import gc
import hashlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from searchr3_embed.search import python_docs
from searchr3_embed.search.passages import CorpusError, Passage


@pytest.fixture(scope="module")
def stdlib() -> dict[str, Passage]:
    passages = python_docs.read_stdlib()
    assert gc.isenabled()
    by_id = {passage.id: passage for passage in passages}
    assert len(by_id) == len(passages), "ids are unique"
    return by_id


def test_stdlib_has_some_thousands_of_entries_of_bounded_length(stdlib: dict[str, Passage]) -> None:
    assert 4000 < len(stdlib) < 8000
    assert sum(id_.startswith("topic:") for id_ in stdlib) > 300
    words = [len(passage.content.split()) for passage in stdlib.values()]
    assert max(words) <= 150
    assert sum(words) < 300_000
    assert all(passage.text.strip() for passage in stdlib.values())


@pytest.mark.parametrize(
    "name",
    [
        "json.loads",
        "str.split",
        "print",
        "subprocess.run",
        "math.sqrt",
        "itertools.groupby",
        "collections.deque.rotate",
        "re.Pattern.findall",
        # documented under the name one imports, not under the private or inner module where the source stands
        "asyncio.gather",
        "argparse.ArgumentParser.add_argument",
        "collections.abc.Mapping",
        "concurrent.futures.Future",
        "datetime.datetime.strptime",
        "os.path.join",
        "pathlib.Path.read_text",
        "random.choice",
        "unittest.TestCase.assertEqual",
    ],
)
def test_stdlib_holds_everyday_names(stdlib: dict[str, Passage], name: str) -> None:
    assert name in stdlib[name].text.splitlines()[0]
    assert stdlib[name].content == stdlib[name].text, "the name is in the text, it is not put in front again"


def test_stdlib_entries_read_like_documentation(stdlib: dict[str, Passage]) -> None:
    signature, first = stdlib["json.loads"].text.splitlines()[:2]
    assert signature.startswith("json.loads(s, *, cls=None")
    assert first.startswith("Deserialize ``s``")
    assert "self" not in stdlib["argparse.ArgumentParser.add_argument"].text.splitlines()[0]
    assert any("str.split" in passage.title for id_, passage in stdlib.items() if id_.startswith("topic:"))


def test_stdlib_leaves_out_what_nobody_looks_up(stdlib: dict[str, Passage]) -> None:
    names = [id_ for id_ in stdlib if not id_.startswith("topic:")]
    private = [name for name in names if any(part.startswith("_") for part in name.split(".") if part != "__future__")]
    assert not private
    assert not [name for name in names if name.split(".")[0] in ("test", "idlelib", "lib2to3", "distutils", "pip")]
    texts = [passage.text for id_, passage in stdlib.items() if id_.startswith("topic:")]
    assert len(set(texts)) == len(texts), "topics repeat each other, the entries do not"


def test_stdlib_is_the_same_in_another_process_and_imports_nothing(stdlib: dict[str, Passage]) -> None:
    code = """
import sys
from searchr3_embed.search import python_docs
import hashlib
before = set(sys.modules)
passages = python_docs.read_stdlib()
print(hashlib.sha256(repr(passages).encode()).hexdigest())
for name in sorted(set(sys.modules) - before):
    print(name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    digest, *imported = result.stdout.split()
    assert digest == hashlib.sha256(repr(list(stdlib.values())).encode()).hexdigest()
    unexpected = [
        name for name in imported if name not in python_docs._COMPILED and not name.startswith("_sysconfigdata")
    ]
    assert not unexpected
    assert result.stderr == ""


def test_stdlib_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(CorpusError, match="without the sources"):
        python_docs.read_stdlib()
    assert gc.isenabled()


def test_stdlib_survives_a_file_that_is_not_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good.py").write_text('"""A module."""\n\ndef f(a, b=1):\n    """Does it."""\n')
    (tmp_path / "bad.py").write_text("def")
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(python_docs, "_COMPILED", {})
    with caplog.at_level(logging.WARNING):
        passages = {passage.id: passage.text for passage in python_docs.read_stdlib()}
    assert passages["good.f"] == "good.f(a, b=1)\nDoes it."
    assert "bad.py" in caplog.text
