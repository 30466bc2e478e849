"""The ``searchr3`` command: reads arguments, calls the library, prints.

Results go to standard output, everything else (progress, notes, warnings, errors) to standard error. An error is one
line and exit status 2. What loads torch is imported inside the commands, so that ``searchr3 --help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import numpy as np

    from searchr3_embed.embedder import Reasoning, ReasoningEmbedder
    from searchr3_embed.search.index import Answer, PassageIndex
    from searchr3_embed.search.passages import Passage

_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_STDIN = "-"


class CommandError(ValueError):
    """The command cannot be carried out as given. The message is one sentence."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name; None takes the process's own.

    Returns:
        The exit status: 0 for success, 2 for an error, 130 after Ctrl-C, 141 where nobody reads the output.
    """
    verbose = False
    try:
        args = _parse(argv)
        verbose = args.verbose
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a console that cannot show a character must not end the command
                stream.reconfigure(errors="backslashreplace")
        with _quiet_libraries(verbose):
            args.run(args)
        sys.stdout.flush()
        return 0
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("searchr3: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has seen enough (`| head`). Python would complain once more when it flushes at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        if verbose:
            import traceback

            traceback.print_exception(error)
        print(f"searchr3: error: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename else ""
        return f"{named}{error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory: try a smaller --batch-size"
    return " ".join(str(error).split()) or type(error).__name__


# ------------------------------------------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is a --help away."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see {self.prog} --help)")


class _Version(argparse.Action):
    """Looks the version up when it is asked for: that takes longer than all the rest of the parsing."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and stop")

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from searchr3_embed import __version__

        print(f"searchr3-embed {__version__}")
        parser.exit()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "words") or any(word.startswith("-") and word != _STDIN for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse gives up on a list that an option interrupts: search docs -k 3 "how ...?"
        args.words += rest
    return args


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="searchr3",
        description="Text embeddings from a language model that thinks before it embeds.",
        epilog=(
            "examples:\n"
            "  searchr3 demo                                        six questions to Python's own documentation\n"
            '  searchr3 search docs "how do I install it?"          search the text files of a folder\n'
            '  searchr3 reason "why is the sky blue?"               see what the model thinks about a question\n'
            "  searchr3 encode texts.jsonl --as document -o v.npy   vectors for a file of texts\n"
            "  searchr3 save searchr3 ./searchr3                    a folder for SentenceTransformer('searchr3')\n"
            "  searchr3 env                                         what a bug report needs\n"
            "\n"
            "Each command explains itself: searchr3 search --help"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], None], text: str, epilog: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("--verbose", action="store_true", help="show the logs and warnings of all libraries")
        added.set_defaults(run=run)
        return added

    encode = command(
        "encode",
        _encode,
        "turn texts into vectors",
        "examples:\n"
        "  searchr3 encode texts.txt -o vectors.npy              one text a line, one row a text\n"
        "  searchr3 encode corpus.jsonl --as document -o out.jsonl\n"
        "  searchr3 encode questions.jsonl --field question --as query -o queries.npy\n"
        '  echo "how tall is Everest?" | searchr3 encode - --as query\n'
        "\n"
        "A .npy output is a float32 array of shape (texts, dimension). A .jsonl output and the standard output hold\n"
        'one object a text: {"id": ..., "text": ..., "embedding": [...]} (no id for plain lines).',
    )
    encode.add_argument("input", metavar="INPUT", help="a file with one text a line, a .jsonl file, or - for stdin")
    encode.add_argument("-o", "--output", metavar="FILE", help="a .npy or .jsonl file (default: JSONL on stdout)")
    encode.add_argument("--force", action="store_true", help="replace the output if it exists")
    encode.add_argument(
        "--as",
        dest="kind",
        choices=("query", "document", "text"),
        default="text",
        help="what the texts are; the model thinks about queries only, unless told otherwise (default: text)",
    )
    encode.add_argument("--format", choices=("lines", "jsonl"), help="format of the input (default: by its name)")
    encode.add_argument("--field", default="text", help="field of a JSONL record that holds the text (default: text)")
    _add_model_options(encode, reason="think before embedding (default: for --as query)")

    search = command(
        "search",
        _search,
        "search a folder, a file or Python's documentation by meaning",
        "examples:\n"
        '  searchr3 search docs "how do I install it?"           *.md, *.rst, *.txt ... in a folder, recursively\n'
        '  searchr3 search corpus.jsonl "first question" "second question" -k 10\n'
        '  searchr3 search --stdlib "parse a date string"        the documentation of this Python\n'
        "  searchr3 search --stdlib - < questions.txt            one question a line\n"
        "\n"
        "JSONL records hold `text` and optionally `id` and `title`. The vectors of a source are kept in the cache\n"
        "folder: the next search encodes only what is new or changed.",
    )
    search.usage = "searchr3 search [options] (SOURCE | --stdlib) QUESTION [QUESTION ...]"
    search.add_argument(
        "words",
        nargs="+",
        metavar="SOURCE QUESTION",
        help="a folder of text files, a text file or a .jsonl file; then one or more questions, or - for one question "
        "a line from stdin",
    )
    search.add_argument("--stdlib", action="store_true", help="search Python's own documentation instead of a SOURCE")
    search.add_argument("-k", "--top-k", type=_positive, default=5, metavar="N", help="hits per question (default: 5)")
    search.add_argument("--field", default="text", help="field of a JSONL record that holds the text (default: text)")
    search.add_argument("--json", action="store_true", help="print one JSON object per question")
    _add_model_options(search, reason="think about the question before embedding it (default)")
    _add_cache_option(search)

    reason = command(
        "reason",
        _reason,
        "print what the model thinks about a text before it embeds it",
        "examples:\n"
        '  searchr3 reason "why is the sky blue?"\n'
        "  searchr3 reason - --json < questions.txt              one object a line, without the embedding",
    )
    reason.add_argument(
        "words", nargs="+", metavar="TEXT", help="one or more texts, or - for one text a line from stdin"
    )
    reason.add_argument("--json", action="store_true", help="print one JSON object per text")
    _add_model_options(reason)

    save = command(
        "save",
        _save,
        "write a model into a folder that sentence-transformers loads as it is",
        "examples:\n"
        "  searchr3 save searchr3 ./searchr3\n"
        "  python -c \"from sentence_transformers import SentenceTransformer; SentenceTransformer('searchr3')\"",
    )
    save.add_argument("name", metavar="NAME", help="searchr3, searchr3-small, searchr3-large, a folder or a hub id")
    save.add_argument("folder", metavar="FOLDER", help="where to write; made when missing")
    save.add_argument(
        "--force", action="store_true", help="write into a folder that holds files, replacing the model's"
    )

    env = command("env", _env, "print versions, devices and paths, as a bug report needs them", "")
    env.add_argument("--json", action="store_true", help="print one JSON object")
    _add_cache_option(env)

    demo = command(
        "demo",
        _demo,
        "ask Python's own documentation six everyday questions, with and without reasoning",
        "The first run encodes some thousands of entries; later runs find them in the cache folder.",
    )
    _add_model_options(demo)
    _add_cache_option(demo)
    return parser


def _add_model_options(parser: argparse.ArgumentParser, *, reason: str | None = None) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="searchr3",
        help="searchr3 (packaged, works offline), searchr3-small, searchr3-large, a folder or a hub id "
        "(default: searchr3)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: the best there is)")
    group.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="texts at a time (default: 32)")
    group.add_argument(
        "--max-reasoning-tokens", type=_not_negative, metavar="N", help="budget of a reasoning (default: the model's)"
    )
    if reason:
        group.add_argument("--reason", action=argparse.BooleanOptionalAction, default=None, help=reason)


def _add_cache_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache-folder", metavar="FOLDER", help="where document vectors are kept (see searchr3 env)")


def _positive(text: str) -> int:
    return _integer(text, 1)


def _not_negative(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"expected an integer >= {least}, got {text!r}")
    return value


# -------------------------------------------------------------------------------------------------- commands


def _encode(args: argparse.Namespace) -> None:
    output = Path(args.output) if args.output else None
    if output is not None:
        _check_output(output, args.force)
    passages = _read_input(args.input, args.format, args.field)
    embedder = _load(args)
    encode = {"query": embedder.encode_query, "document": embedder.encode_document, "text": embedder.encode}[args.kind]
    vectors = encode(
        [passage.text for passage in passages],
        reason=args.reason,
        batch_size=args.batch_size,
        max_reasoning_tokens=args.max_reasoning_tokens,
        show_progress_bar=sys.stderr.isatty(),
    )
    if output is None:
        for line in _embedding_lines(passages, vectors, ascii_only=not _writes_utf8(sys.stdout)):
            print(line)
        return
    import numpy as np

    from searchr3_embed.search.vector_cache import replacing

    with replacing(output) as file:
        if output.suffix.lower() == ".npy":
            np.save(file, vectors.astype(np.float32, copy=False))
        else:
            for line in _embedding_lines(passages, vectors):
                file.write(line.encode() + b"\n")
    _note(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers in {output}")


def _check_output(output: Path, force: bool) -> None:
    if output.suffix.lower() not in (".npy", *_JSONL_SUFFIXES):
        raise CommandError(f"--output must end in .npy or .jsonl, got {str(output)!r}")
    if output.is_dir():
        raise CommandError(f"{output}: is a folder")
    if output.exists() and not force:
        raise CommandError(f"{output}: exists already; pass --force to replace it")
    if not output.absolute().parent.is_dir():
        raise CommandError(f"{output}: there is no folder {str(output.parent)!r}")


def _read_input(name: str, form: str | None, field: str) -> list[Passage]:
    """The texts to encode, in order: records of a JSONL file, or lines (an empty line is an empty text)."""
    from searchr3_embed.search.passages import Passage, read_jsonl

    shown = "standard input" if name == _STDIN else name
    if (form or ("jsonl" if Path(name).suffix.lower() in _JSONL_SUFFIXES else "lines")) == "jsonl":
        with _opened(name) as stream:
            return read_jsonl(stream, field=field, name=shown)
    with _opened(name) as stream:
        try:
            passages = [Passage("", "", line.rstrip("\r\n")) for line in stream]
        except UnicodeDecodeError as error:
            raise CommandError(f"{shown}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not passages:
        raise CommandError(f"{shown}: no text")
    return passages


@contextlib.contextmanager
def _opened(name: str) -> Iterator[io.TextIOBase]:
    """A UTF-8 text stream over a file or, for ``-``, the standard input, whatever the locale says."""
    if name != _STDIN:
        with open(name, encoding="utf-8-sig") as stream:
            yield stream
        return
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:  # replaced, as tests and notebooks do
        yield sys.stdin  # type: ignore[misc]
        return
    stream = io.TextIOWrapper(buffer, encoding="utf-8-sig")
    try:
        yield stream
    finally:
        stream.detach()


def _embedding_lines(passages: Sequence[Passage], vectors: np.ndarray, *, ascii_only: bool = False) -> Iterator[str]:
    for passage, vector in zip(passages, vectors, strict=True):
        record: dict[str, Any] = {"id": passage.id} if passage.id else {}
        record["text"] = passage.text
        # The shortest digits that give the same float32 again; tolist() would print all of a float64.
        record["embedding"] = [float(str(value)) for value in vector]
        yield json.dumps(record, ensure_ascii=ascii_only)


def _search(args: argparse.Namespace) -> None:
    words = list(args.words)
    source = None if args.stdlib else words.pop(0)
    if not words:
        raise CommandError(f"no question for {source!r}: give one or more, or - to read them from standard input")
    passages, identity = _read_source(source, args.field)
    index = _build_index(args, passages, identity, "the standard library" if source is None else source)
    for question in _questions(words):
        answer = index.ask(
            question,
            top_k=args.top_k,
            reason=args.reason is not False,
            max_reasoning_tokens=args.max_reasoning_tokens,
        )
        if args.json:
            print(_json(_answer_record(answer)), flush=True)
        else:
            _print_answer(answer, len(passages))


def _read_source(source: str | None, field: str) -> tuple[list[Passage], str]:
    """The passages of a source, None for the standard library, and a name that tells it from other sources."""
    from searchr3_embed.search import passages, python_docs

    if source is None:
        return python_docs.read_stdlib(), python_docs.python_release()
    path = Path(source)
    identity = str(path.resolve())
    if path.is_dir():
        return passages.read_folder(path), identity
    if not path.exists():
        raise CommandError(f"{source}: no such folder or file")
    if path.suffix.lower() in _JSONL_SUFFIXES:
        return passages.read_jsonl(path, field=field), f"{identity}#{field}"
    if path.suffix.lower() in passages.TEXT_SUFFIXES:
        return passages.read_file(path), identity
    accepted = ", ".join([*_JSONL_SUFFIXES, *sorted(passages.TEXT_SUFFIXES)])
    raise CommandError(f"{source}: expected a folder or a file ending in {accepted}")


def _build_index(args: argparse.Namespace, passages: list[Passage], identity: str, name: str) -> PassageIndex:
    embedder = _load(args)
    from tqdm import tqdm

    from searchr3_embed.search.index import build_index
    from searchr3_embed.search.vector_cache import default_cache_folder

    with tqdm(total=len(passages), desc="indexing", unit=" passages", delay=1, leave=False, file=sys.stderr) as bar:
        index = build_index(
            embedder,
            passages,
            source=identity,
            cache_folder=args.cache_folder or default_cache_folder(),
            batch_size=args.batch_size,
            progress=bar.update,
        )
    _note(f"{len(passages):,} passages of {name}, {index.origin}")
    return index


def _questions(words: Sequence[str]) -> Iterator[str]:
    """The arguments, with every ``-`` replaced by the lines of the standard input, as they come."""
    for word in words:
        if word != _STDIN:
            yield word
            continue
        with _opened(_STDIN) as stream:
            while True:
                if sys.stdin.isatty():
                    print("question> ", end="", file=sys.stderr, flush=True)
                line = stream.readline()
                if not line:
                    break
                if line.strip():
                    yield line.strip()


def _print_answer(answer: Answer, passages: int) -> None:
    from searchr3_embed.cli.demo import shorten

    width = max(shutil.get_terminal_size((100, 24)).columns, 40)
    print(f"\nquestion:  {answer.question}")
    if answer.reasoning is not None:
        print(f"reasoning: {_reasoning_text(answer.reasoning)}")
    for rank, hit in enumerate(answer.hits, 1):
        print(f"{rank:3}. {hit.score:.3f}  {hit.passage.id}" + _title(hit.passage))
        print(shorten(f"            {hit.summary}", width))
    verb = "think and embed" if answer.reasoning is not None else "embed"
    milliseconds = f"{1000 * answer.embed_seconds:.0f} ms to {verb}"
    print(
        f"time:      {milliseconds}, {1000 * answer.search_seconds:.1f} ms to search {passages:,} passages", flush=True
    )


def _title(passage: Passage) -> str:
    return f"  ({passage.title})" if passage.title and passage.title not in passage.id else ""


def _reasoning_text(reasoning: Reasoning) -> str:
    text = " ".join(reasoning.reasoning.split()) or "(nothing)"
    cut = "" if reasoning.finish_reason == "embed_token" else ", cut at the budget"
    return f"{text}  [{reasoning.reasoning_tokens} tokens{cut}]"


def _answer_record(answer: Answer) -> dict[str, Any]:
    record: dict[str, Any] = {"question": answer.question}
    if answer.reasoning is not None:
        record |= {
            "reasoning": answer.reasoning.reasoning,
            "finish_reason": answer.reasoning.finish_reason,
            "reasoning_tokens": answer.reasoning.reasoning_tokens,
        }
    record |= {"embed_seconds": round(answer.embed_seconds, 6), "search_seconds": round(answer.search_seconds, 6)}
    record["hits"] = [
        {
            "rank": rank,
            "score": round(hit.score, 6),
            "id": hit.passage.id,
            "title": hit.passage.title,
            "text": hit.passage.text,
        }
        for rank, hit in enumerate(answer.hits, 1)
    ]
    return record


def _reason(args: argparse.Namespace) -> None:
    import time

    embedder = _load(args)
    for text in _questions(args.words):
        start = time.perf_counter()
        trace = embedder.reason(text, max_reasoning_tokens=args.max_reasoning_tokens)
        seconds = time.perf_counter() - start
        if args.json:
            record = {
                "text": trace.text,
                "reasoning": trace.reasoning,
                "finish_reason": trace.finish_reason,
                "prompt_tokens": trace.prompt_tokens,
                "reasoning_tokens": trace.reasoning_tokens,
                "seconds": round(seconds, 6),
            }
            print(_json(record), flush=True)
            continue
        print(f"question:  {trace.text}")
        print(f"reasoning: {trace.reasoning or '(nothing)'}")
        meaning = "closed by the model" if trace.finish_reason == "embed_token" else "cut at the budget"
        print(f"finish:    {trace.finish_reason} ({meaning})")
        print(f"tokens:    {trace.prompt_tokens} prompt, {trace.reasoning_tokens} reasoning")
        print(f"time:      {1000 * seconds:.0f} ms\n", flush=True)


def _save(args: argparse.Namespace) -> None:
    import tempfile

    target = Path(args.folder)
    if target.exists() and not target.is_dir():
        raise CommandError(f"{target}: is a file, expected a folder")
    if target.is_dir() and any(target.iterdir()) and not args.force:
        raise CommandError(f"{target}: is not empty; pass --force to write into it")
    embedder = _load(argparse.Namespace(model=args.name, device="cpu", verbose=args.verbose))
    target.mkdir(parents=True, exist_ok=True)
    # Written aside first: a full disk must not leave half a model, nor spoil the one that is being replaced.
    with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as scratch:
        written = Path(scratch, "model")
        embedder.save_pretrained(str(written))
        for path in sorted(written.rglob("*")):
            place = target / path.relative_to(written)
            if path.is_dir():
                place.mkdir(exist_ok=True)
            else:
                os.replace(path, place)
    _note(f"{args.name} is saved in {target}; SentenceTransformer({args.folder!r}) loads it")


def _demo(args: argparse.Namespace) -> None:
    from searchr3_embed.cli import demo
    from searchr3_embed.search import python_docs

    passages = python_docs.read_stdlib()
    release = python_docs.python_release()
    _note(f"reading the documentation of {release}: {len(passages):,} entries (encoded once, then kept)")
    index = _build_index(args, passages, release, release)
    demo.run(index, max_reasoning_tokens=args.max_reasoning_tokens)


def _env(args: argparse.Namespace) -> None:
    from searchr3_embed.cli import bug_report

    report = bug_report.report(args.cache_folder)
    if args.json:
        print(_json(report))
        return
    for section, entries in report.items():
        print(f"{section}:")
        for name, value in entries.items():
            print(f"  {name}: {value}")


# --------------------------------------------------------------------------------------------------- helpers


def _load(args: argparse.Namespace) -> ReasoningEmbedder:
    """The model, after what is wrong with the device is said in a sentence."""
    import torch
    from transformers.utils import logging as transformers_logging

    if args.device is not None:
        try:
            kind = torch.device(args.device).type
        except RuntimeError as error:
            raise CommandError(f"--device: expected cpu, cuda, cuda:1, mps ..., got {args.device!r}") from error
        here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not here.get(kind, True):
            raise CommandError(f"--device: there is no {args.device!r} here (torch {torch.__version__})")
    if args.verbose:
        transformers_logging.set_verbosity_info()
    else:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    from searchr3_embed.embedder import ReasoningEmbedder

    return ReasoningEmbedder(args.model, device=args.device)


@contextlib.contextmanager
def _quiet_libraries(verbose: bool) -> Iterator[None]:
    """Our own warnings as single lines, everybody else's not at all; with --verbose all logs, as they come."""
    handler = logging.StreamHandler()
    if verbose:
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logger, level = logging.getLogger(), logging.INFO
    else:
        handler.setFormatter(logging.Formatter("searchr3: warning: %(message)s"))
        logger, level = logging.getLogger("searchr3_embed"), logging.WARNING
    before = (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = verbose
    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=not _writes_utf8(sys.stdout))


def _writes_utf8(stream: Any) -> bool:
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "") == "utf8"
