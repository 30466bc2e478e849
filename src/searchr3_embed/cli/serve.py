"""``searchr3 serve``: the embedder behind an address."""

from __future__ import annotations

import argparse

from searchr3_embed.cli.arguments import CommandError, not_negative, positive
from searchr3_embed.cli.console import note

SUMMARY = "serve the embedder over HTTP, as OpenAI's /v1/embeddings"
EPILOG = """\
examples:
  searchr3 serve                                        on 127.0.0.1:8080, the packaged model
  searchr3 serve --host 0.0.0.0 --api-key "$KEY"        reached from elsewhere: a key is needed
  SEARCHR3_API_KEY=one,two searchr3 serve --port 9000   keys that no process list shows

A question and a document take different ways, and OpenAI's API does not say which is which. Send "input_type":
"query" or "document" with a call, or take one of the names searchr3:query and searchr3:document as the model;
without either, texts are documents. A client that has one model for both sides never thinks: make two clients.

  POST /v1/embeddings   input, model, dimensions, encoding_format, user; and input_type, reason,
                        max_reasoning_tokens, deadline_ms (past it, the vector without thinking), reasoning
  POST /v1/reason       what the model thinks; with "stream": true as server-sent events
  GET  /v1/models, /health, /ready, /metrics (Prometheus), /docs

Every option is also a variable: SEARCHR3_MAX_TEXTS=512 and so on. On SIGTERM new calls get 503, those that were
taken are answered, and the command ends with status 0."""

_EXTRA = "searchr3 serve needs packages that are not installed ({}). Run: pip install 'searchr3-embed[serve]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument(
        "--model", help="searchr3 (packaged), searchr3-small, searchr3-large, a folder or a hub id (default: searchr3)"
    )
    parser.add_argument("--served-name", metavar="NAME", help="what clients call it (default: the model's name)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: the best there is)")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind to (default: 127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8080, help="port, 0 for any that is free (default: 8080)")
    access = parser.add_argument_group("access")
    access.add_argument("--api-key", action="append", metavar="KEY", help="key that callers need; may be repeated")
    access.add_argument(
        "--allow-no-key", action="store_true", default=None, help="be reached from elsewhere without a key"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-body-mb", type=positive, metavar="N", help="largest body in MiB (default: 16)")
    limits.add_argument("--max-texts", type=positive, metavar="N", help="texts in a call (default: 2048)")
    limits.add_argument(
        "--max-waiting", type=positive, metavar="N", help="calls that wait, of each kind, before 429 (default: 256)"
    )
    limits.add_argument(
        "--long-texts",
        choices=("truncate", "refuse"),
        help="texts longer than the encoder reads: cut them, and say so in a header, or refuse (default: truncate)",
    )
    limits.add_argument(
        "--token-ids",
        choices=("refuse", "model", "openai"),
        help="token ids as input: refuse them, or read them as the encoder's own or as OpenAI's cl100k_base, which "
        "langchain-openai sends unless told otherwise (default: refuse)",
    )
    limits.add_argument(
        "--drain-seconds",
        type=not_negative,
        metavar="N",
        help="for calls that were taken before SIGTERM (default: 30)",
    )
    speed = parser.add_argument_group("speed")
    speed.add_argument("--question-batch", type=positive, metavar="N", help="questions at once (default: 64)")
    speed.add_argument(
        "--document-batch",
        type=positive,
        metavar="N",
        help="documents computed before the next question has its turn (default: 64; more on a GPU)",
    )
    speed.add_argument(
        "--question-cache", type=not_negative, metavar="N", help="questions whose vectors are remembered (default: 0)"
    )
    log = parser.add_argument_group("log")
    log.add_argument("--log-format", choices=("text", "json"), help="one line a request on stderr (default: text)")
    log.add_argument("--log-texts", action="store_true", default=None, help="log the texts too")


def run(args: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    try:
        from searchr3_embed.server.run import serve
    except ModuleNotFoundError as error:
        raise CommandError(_EXTRA.format(error.name)) from error
    from searchr3_embed.server.settings import Settings

    names = set(Settings.__dataclass_fields__) - {"api_keys"}
    given = {name: value for name, value in vars(args).items() if name in names}
    settings = Settings.from_environment(None, **given, api_keys=tuple(args.api_key) if args.api_key else None)
    settings.check_reach(args.host)
    shown = f"[{args.host}]" if ":" in args.host else args.host
    note(f"searchr3: loading {settings.model}")
    serve(settings, args.host, args.port, lambda port: note(f"searchr3: http://{shown}:{port}/v1 (try /docs, /ready)"))


def _port(text: str) -> int:
    value = not_negative(text)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return value
