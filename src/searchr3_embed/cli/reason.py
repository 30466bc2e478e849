"""``searchr3 reason``: what the model thinks about a text before it embeds it."""

from __future__ import annotations

import argparse
import time

from searchr3_embed.cli.arguments import add_model_options
from searchr3_embed.cli.console import as_json, questions, reasoning_text
from searchr3_embed.cli.model import load

SUMMARY = "print what the model thinks about a text before it embeds it"
EPILOG = """\
examples:
  searchr3 reason "why is the sky blue?"
  searchr3 reason - --json < questions.txt              one object a line, without the embedding"""


_MEANING = {
    "embed_token": "closed by the model",
    "length": "cut at the budget",
    "nothing_to_add": "the vector is the encoder's",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument(
        "words", nargs="+", metavar="TEXT", help="one or more texts, or - for one text a line from stdin"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per text")
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Reason about one text after the other."""
    embedder = load(args.model, device=args.device, verbose=args.verbose)
    for text in questions(args.words):
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
            print(as_json(record), flush=True)
            continue
        print(f"question:  {trace.text}")
        print(f"reasoning: {reasoning_text(trace)}")
        print(f"finish:    {trace.finish_reason} ({_MEANING[trace.finish_reason]})")
        print(f"tokens:    {trace.prompt_tokens} prompt, {trace.reasoning_tokens} reasoning")
        print(f"time:      {1000 * seconds:.0f} ms\n", flush=True)
