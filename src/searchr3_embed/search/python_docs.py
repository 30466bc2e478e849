"""Python's own documentation as passages: the docstrings of its standard library and its language topics.

``read_stdlib`` works on source files: it does not import the modules that it documents.
"""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import logging
import os
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import BuiltinFunctionType

from searchr3_embed.search.passages import CorpusError, Passage, files_below
from searchr3_embed.search.splitting import MAX_WORDS, paragraphs_of, split_paragraph, split_text, word_count

logger = logging.getLogger(__name__)

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
        documented[name] = Passage(name, name, f"{signature}\n{body}", names_itself=name in signature)

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
    for _, paragraph in paragraphs_of(1, inspect.cleandoc(docstring).splitlines()):
        paragraph = " ".join(re.sub(r"([-=*~^#_.])\1{3,}", " ", paragraph).split())
        if not paragraph:
            continue
        if word_count(paragraph) > left:
            paragraph = next(split_paragraph(paragraph, left), "") if left > 10 else ""
            if paragraph:
                paragraphs.append(paragraph)
            break
        paragraphs.append(paragraph)
        left -= word_count(paragraph)
    return "\n".join(paragraphs)


def _parse_modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Yield ``(dotted name, syntax tree)`` for the library's modules that are documented."""
    other_path = "ntpath" if os.path.__name__ == "posixpath" else "posixpath"
    for path in files_below(root, _SKIPPED):
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
