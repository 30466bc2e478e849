"""What the commands that ask a language model share: arguments, a plan that sends nothing, errors on one line."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from searchr3_embed.adapt.chat_client import (
    CHARACTERS_PER_TOKEN,
    KEY_VARIABLES,
    Endpoint,
    LLMError,
    Messages,
    characters,
)
from searchr3_embed.adapt.chat_store import is_final, read_store, request_key

BUDGET_SPENT = 3  # exit status of a command that wrote what it has
HELP = f"""\
The key is read from the environment, {KEY_VARIABLES[0]} or else {KEY_VARIABLES[1]}, and never written anywhere. Start
with --dry-run: it counts the requests, estimates the tokens, shows a prompt and sends nothing. Every answer is kept
the moment it arrives: after a kill, an error or a spent budget the same command goes on and asks nothing twice.

exit status: 0 done, 1 the server refused or cannot be reached, 2 bad input, 3 budget spent (what there is was written)
"""


def add_arguments(parser: argparse.ArgumentParser, *, temperature: float, max_tokens: int) -> None:
    """Adds the arguments of an endpoint, with a command's own defaults."""
    group = parser.add_argument_group("language model")
    group.add_argument("--base-url", required=True, metavar="URL", help="for example http://localhost:8000/v1")
    group.add_argument("--model", required=True, help="its name, as the server knows it")
    group.add_argument("--temperature", type=float, default=temperature, help=f"default: {temperature}")
    group.add_argument("--max-tokens", type=int, default=max_tokens, help=f"of one answer (default: {max_tokens})")
    group.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="repeatable: a further field of the request body, null leaves one out: --option max_tokens=null "
        "--option max_completion_tokens=512, --option 'chat_template_kwargs={\"enable_thinking\": false}'",
    )
    group.add_argument(
        "--answers", type=Path, metavar="FILE", help="where answers are kept (default: OUT.answers.jsonl)"
    )
    for name, kind, text in (
        ("concurrency", int, "most requests in flight"),
        ("timeout", float, "seconds for one attempt"),
        ("attempts", int, "most times one request is sent"),
        ("max-requests", int, "budget of attempts over all runs"),
        (
            "max-tokens-total",
            int,
            "budget of tokens over all runs, prompts and answers; those in flight may exceed it",
        ),
    ):
        default = getattr(Endpoint, name.replace("-", "_"))
        shown = "none" if default is None else f"{default:g}"
        group.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: {shown})")
    group.add_argument("--dry-run", action="store_true", help="count, estimate, show one prompt, send nothing")


def endpoint_of(args: argparse.Namespace) -> Endpoint:
    """The endpoint that the arguments describe.

    Raises:
        ValueError: A value cannot be used; the message names it.
    """
    options: dict[str, Any] = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    for option in args.option:
        name, equals, value = option.partition("=")
        try:
            if not name or not equals or name in ("model", "messages", "stream", "n"):
                raise ValueError
            options[name] = json.loads(value)
        except ValueError:
            raise ValueError(
                f"--option {option!r}: expected NAME=JSON, such as top_p=0.9 or 'stop=[\"END\"]'; "
                "model, messages, stream and n are not options"
            ) from None
    names = ("base_url", "model", "concurrency", "timeout", "attempts", "max_requests", "max_tokens_total")
    return Endpoint(options=options, **{name: getattr(args, name) for name in names})


def store_of(args: argparse.Namespace) -> Path:
    """The file of answers that the arguments name."""
    return args.answers or args.out.with_name(f"{args.out.name}.answers.jsonl")


def plan(conversations: Sequence[Messages], endpoint: Endpoint, store: Path) -> str:
    """What ``ask`` would do, for people: how many requests, about how many tokens, and one of the prompts."""
    bodies = {request_key(body): body for body in map(endpoint.body, conversations)}
    held = {line["key"] for line in read_store(store) if is_final(line)}
    todo = [body for key, body in bodies.items() if key not in held]
    prompt_tokens = sum(characters(body) for body in todo) // CHARACTERS_PER_TOKEN
    lines = [
        f"{len(conversations)} conversations, {len(bodies)} distinct, {len(bodies) - len(todo)} of them answered "
        f"already: {len(todo)} requests to {endpoint.model} at {endpoint.base_url}",
        f"about {prompt_tokens} prompt tokens (estimated, {CHARACTERS_PER_TOKEN} characters each)",
    ]
    limits = [value for name in ("max_tokens", "max_completion_tokens") if (value := endpoint.options.get(name))]
    if limits:
        lines.append(f"at most {min(limits) * len(todo)} tokens of answers ({min(limits)} each), retries not counted")
    if todo:
        lines += ["", "The first request:"]
        lines += [f"[{message['role']}]\n{message['content']}" for message in todo[0]["messages"]]
    return "\n".join([*lines, "", "Nothing was sent."])


def guarded(work: Callable[[], int]) -> int:
    """Runs a command; turns what can go wrong into one line on stderr and an exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with logging_redirect_tqdm():
            return work()
    except KeyboardInterrupt:
        print("interrupted; the answers so far are kept, the same command goes on from there", file=sys.stderr)
        return 130
    except LLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
