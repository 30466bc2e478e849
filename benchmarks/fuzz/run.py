"""The command line of ``python -m benchmarks.fuzz``: blocks of texts, a state that is kept, and the report."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from benchmarks.fuzz import __doc__ as package_doc
from searchr3_embed.files import write_json, write_text
from training.evaluate.machine import machine_description
from training.evaluate.tables import markdown_table

if TYPE_CHECKING:
    from benchmarks.fuzz.checks import Findings
    from benchmarks.fuzz.subjects import Subject

BLOCK = 250
# One block in so many holds a text of a million characters.
_LONG_EVERY = 8
# Small models take all texts for their token ids, and one in so many for vectors.
_SMALL_SHARE = 10


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz",
        description=package_doc,
        epilog="first try:  python -m benchmarks.fuzz --texts 500 --out results\n"
        "a failure:  its text stands in fuzz.json as ascii() writes it; --seed and --texts make the same texts again",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--texts", type=int, default=100_000, help="how many texts (default: 100000)")
    parser.add_argument("--thinking", type=int, help="how many of them think (default: a fifth)")
    parser.add_argument("--model", default="searchr3", help="alias, folder or hub id (default: searchr3)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="folder for fuzz.json and fuzz.md, made if missing")
    parser.add_argument("--again", action="store_true", help="begin anew instead of going on where a run was stopped")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 1 when something is wrong, 2 for bad input."""
    parser = arguments()
    args = parser.parse_args(argv)
    thinking = args.texts // 5 if args.thinking is None else args.thinking
    if args.texts < 1:
        parser.error(f"--texts must be at least 1, got {args.texts}")
    if not 0 <= thinking <= args.texts:
        parser.error(f"--thinking must be from 0 to --texts ({args.texts}), got {thinking}")
    from benchmarks.fuzz import subjects
    from searchr3_embed.checkpoint import CheckpointError

    # What is cut of a text is said once a batch; here nearly every batch has such a text.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    settings = {"texts": args.texts, "thinking": thinking, "model": args.model, "seed": args.seed, "block": BLOCK}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            tried = [subjects.subject(args.model, args.model, args.device)]
        except CheckpointError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        tried += [
            subjects.subject(name, str(folder), args.device) for name, folder in subjects.small_models(Path(scratch))
        ]
        result = run(tried, settings, args.out, again=args.again)
    print(render(result), end="")
    return 1 if result["wrong"] else 0


def run(tried: Sequence[Subject], settings: dict[str, Any], out: Path, *, again: bool = False) -> dict[str, Any]:
    """Tries all blocks that are not done yet, and writes the result after each.

    Args:
        tried: The model first, then the small ones.
        settings: What was asked for; a state of other settings is not continued.
        out: Folder of fuzz.json and fuzz.md.
        again: Leave an earlier state aside.

    Returns:
        What fuzz.json holds.
    """
    from benchmarks.fuzz.checks import Findings, check_block, check_tokens
    from benchmarks.fuzz.nasty_texts import draw, is_broken

    out.mkdir(parents=True, exist_ok=True)
    state = None if again else _earlier(out / "fuzz.json", settings)
    done = state["done"] if state else 0
    found = {
        subject.name: Findings.from_dict(state["subjects"][subject.name]) if state else Findings() for subject in tried
    }
    result: dict[str, Any] = state or {}
    with tqdm(total=settings["texts"], initial=done, unit=" texts", desc="trying", file=sys.stderr) as bar:
        while done < settings["texts"]:
            number, count = done // BLOCK, min(BLOCK, settings["texts"] - done)
            seed = settings["seed"] * 1_000_003 + number
            texts = draw(count, seed, long=number % _LONG_EVERY == 0)
            # So many of the block that the thinking ones are spread evenly.
            thinking = settings["thinking"] * (done + count) // settings["texts"]
            thinking -= settings["thinking"] * done // settings["texts"]
            for place, subject in enumerate(tried):
                findings = found[subject.name]
                part = texts if place == 0 else texts[: -(-count // _SMALL_SHARE)]
                check_block(subject, part, thinking if place == 0 else len(part), findings)
                if place:
                    rest = [text for text in texts[len(part) :] if not is_broken(text)]
                    check_tokens(subject, rest, findings)
                    findings.counts["texts of which only the tokens are compared"] += len(rest)
            done += count
            result = summary(settings, done, found)
            write_json(out / "fuzz.json", result)
            write_text(out / "fuzz.md", render(result))
            bar.update(count)
            bar.set_postfix(failures=sum(findings.counts["failures"] for findings in found.values()))
    return result


def _earlier(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The state of a run with the same settings that was stopped or has ended."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and state.get("settings") == settings else None


def summary(settings: dict[str, Any], done: int, found: dict[str, Findings]) -> dict[str, Any]:
    """What fuzz.json holds; ``wrong`` lists in words what is."""
    from benchmarks.fuzz.checks import MOST_TIES

    wrong = []
    for name, findings in found.items():
        if failures := findings.counts["failures"]:
            wrong.append(f"{name}: {failures} failures")
        ties, thinking = findings.counts["ties"], findings.counts["thinking"]
        # One tie among few rows says nothing.
        if ties > max(1, MOST_TIES * thinking):
            wrong.append(f"{name}: {ties} of {thinking} thinking rows are ties, more than {MOST_TIES:.2%}")
    return {
        "settings": settings,
        "done": done,
        "wrong": wrong,
        "machine": machine_description(),
        "subjects": {name: findings.as_dict() for name, findings in found.items()},
    }


def render(result: dict[str, Any]) -> str:
    """The report as Markdown."""
    settings, rows, lines = result["settings"], [], []
    for name, found in result["subjects"].items():
        counts, largest = found["counts"], found["largest"]
        texts = counts.get("texts", 0) + counts.get("texts of which only the tokens are compared", 0)
        worst = max((value for what, value in largest.items() if what != "gap of a tie"), default=0.0)
        rows.append(
            [name, texts, counts.get("refused", 0), counts.get("thinking", 0), counts.get("ties", 0), f"{worst:.1e}",
             counts.get("failures", 0)]
        )  # fmt: skip
        lines += [
            f"* {name}: {failure['what']}: {failure['text']} {failure['detail']}" for failure in found["failures"]
        ]
    header = ["", "texts", "refused (lone surrogates)", "thinking rows", "ties", "largest difference", "failures"]
    title = f"{result['done']:,} of {settings['texts']:,} texts, seed {settings['seed']}."
    verdict = "Wrong: " + "; ".join(result["wrong"]) + "." if result["wrong"] else "Nothing is wrong."
    return "\n\n".join([title, markdown_table(header, rows), verdict, *(["\n".join(lines)] if lines else [])]) + "\n"
