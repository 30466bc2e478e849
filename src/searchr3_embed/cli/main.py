"""The ``searchr3`` command: its parser, and how a command ends.

Results go to standard output, everything else (progress, notes, warnings, errors) to standard error. An error is one
line and exit status 2.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from searchr3_embed.cli import adapt, demo, encode, env, join, reason, save, search, serve
from searchr3_embed.cli.arguments import STDIN, Parser
from searchr3_embed.cli.console import one_line, quiet_libraries, usable_streams
from searchr3_embed.interruption import STATUS, heard

COMMANDS = {
    "encode": encode,
    "search": search,
    "reason": reason,
    "save": save,
    "join": join,
    "serve": serve,
    "adapt": adapt,
    "env": env,
    "demo": demo,
}
"""Name -> module with ``SUMMARY``, ``EPILOG``, ``add_arguments(parser)`` and ``run(args)``."""

_DESCRIPTION = "Text embeddings: the vectors of the index you have, questions that think."
_EPILOG = """\
examples:
  searchr3 demo                                        six questions to Python's own documentation
  searchr3 search docs "how do I install it?"          search the text files of a folder
  searchr3 reason "why is the sky blue?"               see what the model thinks about a question
  searchr3 encode texts.jsonl --as document -o v.npy   vectors for a file of texts
  searchr3 save searchr3 ./searchr3                    a folder for SentenceTransformer('searchr3')
  searchr3 join BAAI/bge-small-en-v1.5 --out ./mine    an encoder of yours, and an untrained thinker
  searchr3 serve                                       OpenAI's /v1/embeddings on 127.0.0.1:8080
  searchr3 adapt --documents docs --queries pairs.jsonl --out mine    train its question side
  searchr3 env                                         what a bug report needs

Each command explains itself: searchr3 search --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name; None takes the process's own.

    Returns:
        The exit status: 0 for success, 2 for an error, 130 after Ctrl-C, 143 after SIGTERM, 141 where nobody reads
        the output.
    """
    with usable_streams(), _signals_as_exits():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    verbose = False
    try:
        with heard():
            args = _parse(argv)
            verbose = args.verbose
            with quiet_libraries(verbose):
                args.run(args)
            sys.stdout.flush()
        return 0
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("searchr3: interrupted", file=sys.stderr)
        return STATUS
    except _Signal as received:
        print("searchr3: terminated", file=sys.stderr)
        return 128 + received.number
    except BrokenPipeError:
        # The reader has seen enough (`| head`). Python would complain once more when it flushes at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        if verbose:
            import traceback

            traceback.print_exception(error)
        print(f"searchr3: error: {one_line(error)}", file=sys.stderr)
        return 2


class _Signal(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


@contextlib.contextmanager
def _signals_as_exits() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does: what is finished is kept, the rest is removed."""

    def unwind(number: int, frame: FrameType | None) -> None:
        for each in replaced:
            signal.signal(each, signal.SIG_IGN)  # `timeout` sends it twice, and the second would stop the cleaning up
        raise _Signal(number)

    replaced: list[int] = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
                signal.signal(number, unwind)
                replaced.append(number)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


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
    # argparse gives up on a list that an option interrupts: search docs -k 3 "how ...?"
    end = rest.index("--") if "--" in rest else len(rest)
    unknown = [word for word in rest[:end] if word.startswith("-") and word != STDIN]
    if unknown or (rest and not hasattr(args, "words")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        args.words += rest[:end] + rest[end + 1 :]
    return args


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="searchr3", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw)
    parser.add_argument("--version", action=_Version)
    added = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        text = module.SUMMARY
        command = added.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=module.EPILOG, formatter_class=raw
        )
        command.add_argument("--verbose", action="store_true", help="show the logs and warnings of all libraries")
        command.set_defaults(run=module.run)
        module.add_arguments(command)
    return parser
