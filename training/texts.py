"""Texts without questions that training takes excerpts from: paragraphs of text files, and Python functions."""

from __future__ import annotations

import ast
import sysconfig
import textwrap
from pathlib import Path

from training.beir import read_lines

PYTHON_STDLIB = "python_stdlib"  # name of the source that python_functions() gives


def read_paragraphs(path: Path, fewest_words: int = 20) -> list[str]:
    """Paragraphs of a plain text file (one a line), short ones left out."""
    return [line.strip() for _, line in read_lines(path) if len(line.split()) >= fewest_words]


def python_functions(fewest_words: int = 20) -> list[str]:
    """Source code of the documented functions of the running Python's standard library, tests left out."""
    library = Path(sysconfig.get_path("stdlib"))
    functions = []
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.relative_to(library).parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):  # some files hold broken code on purpose
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
                # Whole lines, so that dedent sees the indentation of the first one too.
                lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
                functions.append(textwrap.dedent("\n".join(lines)).strip())
    return [text for text in functions if len(text.split()) >= fewest_words]
