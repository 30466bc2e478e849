"""Reading passages: from a folder of text files, from a JSONL file, from Python's own documentation.

Every reader returns a list of ``Passage`` in an order that depends only on the input. The readers know nothing of
models or vectors, and ``read_stdlib`` works on source files: it does not import the modules that it documents.
"""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import io
import json
import logging
import os
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = frozenset({".txt", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex"})
"""Endings of the files that ``read_folder`` reads (compared in lower case)."""

MAX_WORDS = 130
"""Default length limit of a passage, in words as ``word_count`` counts them."""


class CorpusError(ValueError):
    """The input cannot be read as passages. The message is one sentence and names the file (and the line)."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One searchable text.

    Attributes:
        id: Identifies the passage inside its source: ``guide.md:12``, a JSONL record's own id, ``json.loads``.
        title: What a list of hits shows; may be empty.
        text: The passage itself, without the title.
    """

    id: str
    title: str
    text: str

    @property
    def content(self) -> str:
        """What is embedded: the title and the text, or the text alone where its first line has the title already."""
        if self.title in self.text.partition("\n")[0]:
            return self.text
        return f"{self.title}\n{self.text}"


# ------------------------------------------------------------------------------------------------ plain text


def word_count(text: str) -> int:
    """Length of a text in words, also for text that does not put spaces between words.

    Six characters count as one word at least, and every character from the East Asian blocks as one: a limit in
    blank-separated words alone would let one line of Chinese, or of base64, pass as a single word.
    """
    return max(len(text.split()), len(text) // 6) + sum(1 for c in text if c >= "\u2e80")


def split_text(text: str, *, max_words: int = MAX_WORDS, definitions: bool = False) -> list[tuple[int, str, str]]:
    """Cut a text into passages at its headings, then at paragraphs, then (only where it must) inside a paragraph.

    Understands Markdown headings (``## Title``), underlined ones (reStructuredText, setext) and fenced code blocks.

    Args:
        text: The whole text.
        max_words: Longest passage, see ``word_count``.
        definitions: Take a line like ``str.split(sep=None)`` for a heading too (Python's language topics).

    Returns:
        ``(line, heading, passage)`` triples in the order of the text: the number of the passage's first line, from 1;
        the headings above it, joined by " > ", outermost first (empty where there is none); the passage.
    """
    pieces: list[tuple[int, str, str]] = []
    for start, heading, lines in _sections(text.splitlines(), definitions):
        current: list[str] = []
        current_line, size = start, 0
        for line_number, paragraph in _paragraphs(start, lines):
            for part in _split_paragraph(paragraph, max_words):
                words = word_count(part)
                if current and size + words > max_words:
                    pieces.append((current_line, heading, "\n\n".join(current)))
                    current, size = [], 0
                if not current:
                    current_line = line_number
                current.append(part)
                size += words
        if current:
            pieces.append((current_line, heading, "\n\n".join(current)))
    return pieces


_MARKDOWN_HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*$")
_UNDERLINE = re.compile(r"([=\-~^*+#\"'`:.])\1{2,}\s*$")
_FENCE = re.compile(r"\s*(```|~~~)")
_DEFINITION = re.compile(r"(?:class |async )?[A-Za-z_][\w.]*\(.*\)(?: -> \S+)?$")


def _sections(lines: list[str], definitions: bool) -> Iterator[tuple[int, str, list[str]]]:
    """Yield ``(number of the first line, heading trail, lines)`` for the stretch under each heading."""
    trail: list[tuple[int, str]] = []
    underlines: list[str] = []  # reStructuredText gives levels to underline characters by order of appearance
    body: list[str] = []
    start, index, fenced = 1, 0, False
    while index < len(lines):
        line = lines[index]
        heading: tuple[int, str] | None = None
        used = 1
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            blank_above = index == 0 or not lines[index - 1].strip()
            below = lines[index + 1] if index + 1 < len(lines) else ""
            ruler = _UNDERLINE.match(line) is not None
            overlined = ruler and index + 2 < len(lines) and lines[index + 2].rstrip() == line.rstrip()
            if match := _MARKDOWN_HEADING.match(line):
                heading = (len(match[1]), match[2])
            elif blank_above and overlined and below.strip():
                heading, used = (_level(line, underlines), below.strip()), 3
            elif (
                blank_above
                and line.strip()
                and not line[0].isspace()
                and not ruler
                and _UNDERLINE.match(below)
                and len(below.rstrip()) >= min(len(line.rstrip()), 4)
            ):
                heading, used = (_level(below, underlines), line.strip()), 2
            elif definitions and blank_above and _DEFINITION.match(line):
                heading = (99, line.strip())  # below every real heading, beside the other definitions
        if heading is None:
            body.append(line)
        else:
            yield start, " > ".join(title for _, title in trail), body
            trail = [*(entry for entry in trail if entry[0] < heading[0]), heading]
            start, body = index + used + 1, []
        index += used
    yield start, " > ".join(title for _, title in trail), body


def _level(underline: str, seen: list[str]) -> int:
    if underline[0] not in seen:
        seen.append(underline[0])
    return seen.index(underline[0]) + 1


def _paragraphs(start: int, lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield ``(number of the first line, text)`` for every run of lines between blank ones."""
    run: list[str] = []
    for number, line in enumerate([*lines, ""], start):
        if line.strip():
            run.append(line.rstrip())
        elif run:
            yield number - len(run), "\n".join(run)
            run = []


def _split_paragraph(text: str, max_words: int) -> Iterator[str]:
    """Cut one paragraph where it is longer than allowed: after a sentence, else at a blank, else anywhere."""
    while word_count(text) > max_words:
        low, high = 1, len(text)  # the longest prefix within the limit; word_count grows with the prefix
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if word_count(text[:middle]) <= max_words else (low, middle - 1)
        head = text[:low]
        ends = [match.end() for match in re.finditer(r"[.!?;]\s|[。!?]|\n", head)]
        blanks = [match.end() for match in re.finditer(r"\s", head)]
        # A cut in the first half would leave a stub: better to break a sentence than to make many tiny passages.
        cut = next((places[-1] for places in (ends, blanks) if places and places[-1] > low // 2), low)
        yield text[:cut].strip()
        text = text[cut:].strip()
    if text:
        yield text


# ---------------------------------------------------------------------------------------------------- folder


def read_folder(
    folder: str | os.PathLike[str], *, suffixes: Iterable[str] = TEXT_SUFFIXES, max_words: int = MAX_WORDS
) -> list[Passage]:
    """Read all text files below a folder, cut into passages.

    Hidden files and folders, links to folders and files that look binary are left out (the latter with a warning in
    the log). Text that is not UTF-8 is read with replacement characters.

    Args:
        folder: Where to start.
        suffixes: Endings of the files to read, with their dot.
        max_words: Longest passage, see ``word_count``.

    Returns:
        Passages with ids ``path/in/folder.md:LINE`` and the headings above (else the file name) as titles, files in
        the order of their names.

    Raises:
        CorpusError: No such folder, or nothing in it to read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder")
    wanted = {suffix.lower() for suffix in suffixes}
    passages: list[Passage] = []
    for path in _files(root):
        if path.suffix.lower() not in wanted:
            continue
        passages += _file_passages(path, path.relative_to(root).as_posix(), max_words)
    if not passages:
        raise CorpusError(f"{root}: no text in this folder (files ending in {', '.join(sorted(wanted))} are read)")
    return passages


def read_file(path: str | os.PathLike[str], *, max_words: int = MAX_WORDS) -> list[Passage]:
    """Read one text file as ``read_folder`` reads the files of a folder; ids are ``file.md:LINE``.

    Raises:
        CorpusError: No such file, or no text in it.
    """
    passages = _file_passages(Path(path), Path(path).name, max_words)
    if not passages:
        raise CorpusError(f"{path}: no text in this file")
    return passages


def _file_passages(path: Path, name: str, max_words: int) -> list[Passage]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror or error}") from error
    if b"\0" in data[:8192]:
        logger.warning("%s looks like a binary file and is left out.", path)
        return []
    pieces = split_text(data.decode("utf-8-sig", errors="replace"), max_words=max_words)
    return [Passage(f"{name}:{line}", heading or path.name, text) for line, heading, text in pieces]


def _files(root: Path, skipped: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The files below a folder in the order of their names, without hidden ones and without the named folders."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skipped)
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(folder, name)


# ----------------------------------------------------------------------------------------------------- JSONL


def read_jsonl(
    path: str | os.PathLike[str] | io.TextIOBase, *, field: str = "text", name: str | None = None
) -> list[Passage]:
    """Read a JSONL file: one JSON object a line with the text, and optionally an id and a title.

    Args:
        path: The file, or a text stream that is open already.
        field: The field that holds the text.
        name: What error messages call the input; by default the path.

    Returns:
        One passage a record, in order. The id is the record's ``id`` or ``_id``, else its line number; blank lines are
        skipped.

    Raises:
        CorpusError: No such file, no records, not JSON, not an object, no such field, or a field that is not a
            string. The message starts with ``file:line``.
    """
    name = name or ("standard input" if isinstance(path, io.TextIOBase) else os.fspath(path))
    try:
        if isinstance(path, io.TextIOBase):
            return _parse_jsonl(path, field, name)
        with open(path, encoding="utf-8-sig") as lines:
            return _parse_jsonl(lines, field, name)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise CorpusError(f"{name}: {error.strerror or error}") from error


def _parse_jsonl(lines: Iterable[str], field: str, name: str) -> list[Passage]:
    passages = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # JSONDecodeError, or an integer with too many digits
            raise CorpusError(f"{name}:{number}: not JSON: {error}") from error
        except RecursionError as error:
            raise CorpusError(f"{name}:{number}: not usable: nested too deeply") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{name}:{number}: expected a JSON object, got {type(record).__name__}")
        if field not in record:
            fields = ", ".join(map(repr, record)) or "no fields"
            raise CorpusError(f"{name}:{number}: no field {field!r} (the record has {fields}; choose with --field)")
        text = record[field]
        if not isinstance(text, str):
            raise CorpusError(f"{name}:{number}: field {field!r} must be a string, got {type(text).__name__}")
        title = record.get("title")
        identifier = record.get("id", record.get("_id", number))
        passages.append(Passage(str(identifier), title if isinstance(title, str) else "", text))
    if not passages:
        raise CorpusError(f"{name}: no records")
    return passages


# ------------------------------------------------------------------------------- Python's own documentation

_SKIPPED = frozenset(
    # Not part of what one looks up: tests, applications, tables, what is not ours, and what later Pythons removed.
    "__hello__ __phello__ __pycache__ antigravity distutils encodings ensurepip idlelib lib-dynload lib2to3 "
    "pydoc_data site-packages test tests this turtledemo".split()
)

# Python sources of modules whose public face is (or may be) written in C, and the name they are documented under.
_MIRRORS = {
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
    "_threading_local": "threading",
}

# Modules without a Python source, whose documentation exists only at run time, and the name they go by. All are
# written in C and do nothing when imported; those that this Python or platform does not have are left out.
_COMPILED = {
    "_bisect": "bisect",
    "_collections": "collections",
    "_csv": "csv",
    "_functools": "functools",
    "_queue": "queue",
    "_signal": "signal",
    "_socket": "socket",
    "_sqlite3": "sqlite3",
    "_struct": "struct",
    "_thread": "threading",
    "array": "array",
    "atexit": "atexit",
    "binascii": "binascii",
    "builtins": "",
    "cmath": "cmath",
    "errno": "errno",
    "faulthandler": "faulthandler",
    "fcntl": "fcntl",
    "gc": "gc",
    "grp": "grp",
    "itertools": "itertools",
    "marshal": "marshal",
    "math": "math",
    "mmap": "mmap",
    "msvcrt": "msvcrt",
    "nt": "os",
    "posix": "os",
    "pwd": "pwd",
    "resource": "resource",
    "select": "select",
    "sys": "sys",
    "termios": "termios",
    "time": "time",
    "unicodedata": "unicodedata",
    "winreg": "winreg",
    "winsound": "winsound",
    "zlib": "zlib",
}

_MAX_SIGNATURE = 160  # characters


def read_stdlib(*, max_words: int = MAX_WORDS - 10) -> list[Passage]:
    """Read the documentation of the running Python: docstrings of its standard library and its language topics.

    Modules written in Python are parsed, not imported, so nothing runs and nothing is left out for the lack of a
    display, a database or another operating system; the built-in names and a fixed list of modules written in C are
    inspected. The result is the same in every run of one installation.

    Args:
        max_words: Longest entry, see ``word_count``; longer docstrings are cut, topics are split.

    Returns:
        One passage for each public module, class, function and method that has a docstring (id and title are the
        name one would import, the text is the signature and the docstring), and for each piece of a language topic
        (id ``topic:NAME:LINE``), sorted by id.

    Raises:
        CorpusError: The installation has no library sources (some embedded distributions).
    """
    root = Path(sysconfig.get_path("stdlib"))
    documented: dict[str, Passage] = {}
    seen: set[tuple[str, str]] = set()

    def add(name: str, signature: str, docstring: str) -> None:
        body = _clean(docstring, max_words - word_count(signature))
        last = name.rpartition(".")[2]
        # str.find, bytes.find and bytearray.find may say the same: one of them is enough in a list of hits.
        if not body or name in documented or (last, body) in seen:
            return
        seen.add((last, body))
        documented[name] = Passage(name, name, f"{signature}\n{body}")

    collecting = gc.isenabled()
    gc.disable()  # the collector visits millions of live syntax tree nodes again and again: twice the time
    try:
        _read_compiled(add)
        modules = dict(_parse_modules(root))
        if not modules:
            raise CorpusError(f"{root}: this Python was installed without the sources of its standard library")
        public = _public_names(modules)
        for module in sorted(modules):
            _read_module(module, modules[module], public, add)
        for passage in _read_topics(root, max_words):
            if ("topic", passage.text) not in seen:  # topics overlap: "compound" holds "class", "with", "try" ...
                seen.add(("topic", passage.text))
                documented[passage.id] = passage
    finally:
        if collecting:
            gc.enable()
    return [documented[name] for name in sorted(documented)]


def _clean(docstring: str, max_words: int) -> str:
    """One line a paragraph, without rulers, cut to the length limit."""
    paragraphs: list[str] = []
    left = max_words
    for _, paragraph in _paragraphs(1, inspect.cleandoc(docstring).splitlines()):
        paragraph = " ".join(re.sub(r"([-=*~^#_.])\1{3,}", " ", paragraph).split())
        if not paragraph:
            continue
        if word_count(paragraph) > left:
            paragraph = next(_split_paragraph(paragraph, left), "") if left > 10 else ""
            if paragraph:
                paragraphs.append(paragraph)
            break
        paragraphs.append(paragraph)
        left -= word_count(paragraph)
    return "\n".join(paragraphs)


def _parse_modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Yield ``(dotted name, syntax tree)`` for the library's modules that are documented."""
    other_path = "ntpath" if os.path.__name__ == "posixpath" else "posixpath"
    for path in _files(root, _SKIPPED):
        parts = path.relative_to(root).with_suffix("").parts
        if path.suffix != ".py" or parts[0] in _SKIPPED or parts[0].startswith("config-"):
            continue
        if parts[0] == other_path or (parts[0].startswith("_") and parts[0] not in _MIRRORS):
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        try:
            with warnings.catch_warnings(), tokenize.open(path) as source:
                warnings.simplefilter("ignore")  # old sources hold invalid escapes
                yield name, ast.parse(source.read(), filename=str(path))
        except (OSError, SyntaxError, ValueError) as error:
            logger.warning("%s is left out: %s", path, error)


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a block, looking into ``if`` and ``try`` (platform and fallback definitions)."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _statements([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            handlers = [statement for handler in node.handlers for statement in handler.body]
            yield from _statements([*node.body, *handlers, *node.orelse, *node.finalbody])
        else:
            yield node


def _public_names(modules: dict[str, ast.Module]) -> Callable[[str, str], str | None]:
    """Work out under which module each top-level name is documented.

    A package that says ``from ._local import Path`` (or ``*``) in its ``__init__`` is where people import ``Path``
    from, so it is documented as the package's; and what is only in a private module is not documented at all.

    Returns:
        A function from ``(module, name)`` to the public module, None for what has no public name.
    """
    exported: dict[tuple[str, str], str] = {}
    for package in sorted(modules):
        listed = _listed(modules[package])
        for node in _statements(modules[package].body):
            if not isinstance(node, ast.ImportFrom) or node.level > 1:
                continue
            source = f"{package}.{node.module}" if node.level else node.module or ""
            if source not in modules or not source.startswith(f"{package}."):
                continue
            for alias in node.names:
                for name in _exports(modules[source]) if alias.name == "*" else [alias.name]:
                    if not name.startswith("_") and (listed is None or name in listed):
                        exported.setdefault((source, name), package)

    def lookup(module: str, name: str) -> str | None:
        seen = set()
        while (module, name) in exported and module not in seen:  # a package may export what it imported itself
            seen.add(module)
            module = exported[module, name]
        module = _MIRRORS.get(module, module)
        if module in ("posixpath", "ntpath", "genericpath"):
            module = "os.path"
        return None if any(part.startswith("_") and part != "__future__" for part in module.split(".")) else module

    return lookup


def _exports(tree: ast.Module) -> list[str]:
    """What ``from module import *`` brings: ``__all__`` where it is a plain list, else the public definitions."""
    listed = _listed(tree)
    if listed is not None:
        return listed
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [node.name for node in _statements(tree.body) if isinstance(node, definitions)]


def _listed(tree: ast.Module) -> list[str] | None:
    """A module's ``__all__``, None where there is none or it is computed."""
    names: list[str] | None = None
    for node in _statements(tree.body):
        if not isinstance(node, ast.Assign | ast.AugAssign):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id == "__all__":
            try:
                added = [str(name) for name in ast.literal_eval(node.value)]
            except ValueError:
                return None
            names = [*(names or []), *added] if isinstance(node, ast.AugAssign) else added
    return names


def _read_module(
    module: str,
    tree: ast.Module,
    public: Callable[[str, str], str | None],
    add: Callable[[str, str, str], None],
) -> None:
    classes = {node.name: node for node in _statements(tree.body) if isinstance(node, ast.ClassDef)}
    docstring = ast.get_docstring(tree)
    home = public(module, "")
    if docstring and home == module:
        add(module, f"module {module}", docstring)

    def visit(node: ast.stmt, prefix: str, *, method: bool) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and not node.name.startswith("_"):
                keyword = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
                add(f"{prefix}{node.name}", f"{keyword}{prefix}{node.name}{_signature(node, method)}", text)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            visit_class(node, f"{prefix}{node.name}", set())

    def visit_class(node: ast.ClassDef, name: str, inherited: set[str]) -> None:
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        text = ast.get_docstring(node)
        if not inherited:  # the class itself, not a private base that lends its methods
            initialiser = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
            text = text or (ast.get_docstring(initialiser) if initialiser else None)
            signature = _signature(initialiser, True) if initialiser else f"({', '.join(bases)})" if bases else ""
            if text:
                add(name, f"class {name}{signature}", text)
        for child in _statements(node.body):
            visit(child, f"{name}.", method=True)
        for base in bases:  # argparse._ActionsContainer.add_argument is known as ArgumentParser.add_argument
            if base.startswith("_") and base in classes and base not in inherited:
                visit_class(classes[base], name, inherited | {base})

    for name, method in _bound_methods(tree, classes):  # before the classes: random.choice, not random.Random.choice
        if (text := ast.get_docstring(method)) and (home := public(module, name)) is not None:
            add(f"{home}.{name}", f"{home}.{name}{_signature(method, True)}", text)
    for node in _statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if (home := public(module, node.name)) is not None:
                visit(node, f"{home}.", method=False)


def _bound_methods(tree: ast.Module, classes: dict[str, ast.ClassDef]) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Find functions made as ``_inst = Random(); choice = _inst.choice``."""
    instances: dict[str, ast.ClassDef] = {}
    for node in _statements(tree.body):
        if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            continue
        name, value = node.targets[0].id, node.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in classes:
            instances[name] = classes[value.func.id]
        elif isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and not name.startswith("_"):
            owner = instances.get(value.value.id)
            for method in owner.body if owner else ():
                if isinstance(method, ast.FunctionDef) and method.name == value.attr:
                    yield name, method


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, method: bool) -> str:
    """The parameters in brackets, without ``self`` and ``cls``, shortened where they are very many."""
    arguments = node.args
    static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in node.decorator_list)
    if any(isinstance(mark, ast.Name) and mark.id.endswith("property") for mark in node.decorator_list):
        return ""
    text = ast.unparse(arguments)
    if method and not static:
        text = re.sub(r"^\w+(, /)?(, |$)", "", text)
    return f"({text})" if len(text) <= _MAX_SIGNATURE else f"({text[:_MAX_SIGNATURE].rpartition(',')[0]}, ...)"


def _read_compiled(add: Callable[[str, str, str], None]) -> None:
    """Document the built-in names and the modules that are written in C."""
    for module_name, public in sorted(_COMPILED.items()):
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        prefix = f"{public}." if public else ""
        if public == module_name and module.__doc__:
            add(public, f"module {public}", module.__doc__)
        for name in sorted(vars(module)):
            # sys.__excepthook__ is what sys.excepthook was before somebody (a test runner, a shell) replaced it; and
            # what is put among the built-in names at run time is not built in.
            value = vars(module).get(f"__{name}__", getattr(module, name))
            if not name.startswith("_") and isinstance(value, type | BuiltinFunctionType):
                _read_object(f"{prefix}{name}", value, add)
    _read_object("re.Pattern", re.Pattern, add)  # the only way to these two is a compiled expression
    _read_object("re.Match", re.Match, add)


def _read_object(name: str, value: object, add: Callable[[str, str, str], None]) -> None:
    docstring = value.__dict__.get("__doc__") if isinstance(value, type) else value.__doc__
    if isinstance(docstring, str):
        # The text, not inspect.signature: that evaluates default values, which fails for some (select.epoll).
        signature = getattr(value, "__text_signature__", None) or ""
        signature = re.sub(r"^\((?:\$\w+|self)(, /)?(, )?", "(", signature)
        keyword = "class " if isinstance(value, type) else ""
        add(name, f"{keyword}{name}{signature}", docstring)
    if isinstance(value, type) and not issubclass(value, BaseException):
        for child in sorted(vars(value)):
            member = value.__dict__[child]
            if (
                not child.startswith("_")
                and isinstance(getattr(member, "__doc__", None), str)
                and callable(getattr(value, child, None))
            ):
                _read_object(f"{name}.{child}", member, add)


def _read_topics(root: Path, max_words: int) -> Iterator[Passage]:
    """The language reference's topics, which ship as one dictionary in a Python file."""
    path = root / "pydoc_data" / "topics.py"
    try:
        with tokenize.open(path) as source:
            tree = ast.parse(source.read())
        topics = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    except (OSError, SyntaxError, ValueError, StopIteration) as error:
        logger.warning("Python's language topics are left out: %s: %s", path, error)
        return
    for topic in sorted(topics):
        for line, heading, text in split_text(topics[topic], max_words=max_words, definitions=True):
            title = " > ".join(heading.split(" > ")[-2:]) or topic
            yield Passage(f"topic:{topic}:{line}", title, "\n".join(" ".join(p.split()) for p in text.split("\n\n")))


def python_release() -> str:
    """The running Python, as a name for its documentation: ``Python 3.12.4``."""
    return f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
