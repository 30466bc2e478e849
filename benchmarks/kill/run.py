"""The command line of ``python -m benchmarks.kill``: start, kill, start again, compare."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.kill import __doc__ as package_doc
from benchmarks.kill.victims import NAMES, Victim, victims
from searchr3_embed.files import write_json, write_text
from training.evaluate.machine import machine_description
from training.evaluate.tables import markdown_table

_ROOT = Path(__file__).parents[2]
# One moment in so many lies before the work begins.
_EARLY = 5
# A run may take longer than the first one, on a busy machine.
_PATIENCE = 20
_LONGEST_RUN = 3600


class VictimError(Exception):
    """A run that nobody killed failed."""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kill",
        description=package_doc,
        epilog="first try:  python -m benchmarks.kill --times 1 --only save --out results",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--times", type=int, default=20, help="kills of each command (default: 20)")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=list(NAMES), help=f"what is killed (default: {' '.join(NAMES)})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="folder for kill.json and kill.md, made if missing")
    parser.add_argument("--again", action="store_true", help="begin anew instead of going on where a run was stopped")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 1 when something is wrong, 2 for bad input."""
    parser = arguments()
    args = parser.parse_args(argv)
    if args.times < 1:
        parser.error(f"--times must be at least 1, got {args.times}")
    if sys.platform == "win32":
        parser.error("there is no SIGKILL on Windows")
    settings = {"times": args.times, "seed": args.seed}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            result = run(victims(Path(scratch), args.only), settings, Path(scratch), args.out, again=args.again)
        except VictimError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(render(result), end="")
    return 1 if any(attempt["wrong"] for part in result["victims"].values() for attempt in part) else 0


def run(
    chosen: Sequence[Victim], settings: dict[str, Any], scratch: Path, out: Path, *, again: bool = False
) -> dict[str, Any]:
    """Kills each victim as often as asked for, and writes the result after each time.

    Args:
        chosen: The victims.
        settings: ``times`` and ``seed``; a state of other settings is not continued.
        scratch: Where the runs take place.
        out: Folder of kill.json and kill.md.
        again: Leave an earlier state aside.

    Returns:
        What kill.json holds.

    Raises:
        VictimError: A command fails although nobody kills it.
    """
    out.mkdir(parents=True, exist_ok=True)
    result = {} if again else _earlier(out / "kill.json", settings)
    result = result or {"settings": settings, "machine": machine_description(), "victims": {}}
    for victim in chosen:
        attempts = result["victims"].setdefault(victim.name, [])
        if len(attempts) >= settings["times"]:
            continue
        with tqdm(
            total=settings["times"], initial=len(attempts), desc=victim.name, unit=" kills", file=sys.stderr
        ) as bar:
            whole = scratch / f"{victim.name.replace(' ', '-')}-whole"
            lead, work = uninterrupted(victim, whole)
            while len(attempts) < settings["times"]:
                rng = random.Random(f"{settings['seed']} {victim.name} {len(attempts)}")
                attempts.append(
                    attempt(victim, whole, scratch / "attempt", lead, work, rng, early=len(attempts) % _EARLY == 0)
                )
                write_json(out / "kill.json", result)
                write_text(out / "kill.md", render(result))
                bar.update(1)
                bar.set_postfix(wrong=sum(bool(one["wrong"]) for one in attempts))
    return result


def uninterrupted(victim: Victim, folder: Path) -> tuple[float, float]:
    """Runs a victim to its end, and measures the seconds before its work begins and those of the work."""
    folder.mkdir()
    victim.prepare(folder)
    began = time.monotonic()
    process = _start(victim, folder)
    while process.poll() is None and not victim.begun(folder):
        time.sleep(0.001)
    lead = time.monotonic() - began
    _finish(victim, process, folder)
    return lead, time.monotonic() - began - lead


def attempt(
    victim: Victim, whole: Path, folder: Path, lead: float, work: float, rng: random.Random, *, early: bool
) -> dict[str, Any]:
    """Starts a victim, kills it at a random moment, starts it again, and compares.

    Args:
        victim: What is killed.
        whole: Folder of the uninterrupted run.
        folder: Where to run; it is emptied.
        lead: Seconds before its work begins.
        work: Seconds of its work.
        rng: Of the moment.
        early: Whether the moment lies before the work begins.

    Returns:
        ``after`` (what the seconds count from), ``seconds``, ``late`` (how often the process ended before it could be
        killed) and ``wrong``, empty if nothing is.
    """
    late = 0
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        victim.prepare(folder)
        process = _start(victim, folder)
        while not early and process.poll() is None and not victim.begun(folder):
            time.sleep(0.001)
        # Later ends are drawn from an ever shorter time, so that this comes to an end.
        seconds = rng.uniform(0, (lead if early else work) * 0.8**late)
        time.sleep(seconds)
        if process.poll() is None:
            break
        late += 1
        if late > _PATIENCE:
            raise VictimError(f"{victim.name} always ended before it could be killed")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wrong = [victim.torn(folder)]
    try:
        _finish(victim, _start(victim, folder), folder)
        wrong.append(victim.wrong(whole, folder))
    except VictimError as error:
        wrong.append(str(error))
    if remains := [path.name for path in folder.rglob("*.unfinished")]:
        wrong.append(f"{remains[0]} was left behind")
    after = "start" if early else "the beginning of its work"
    return {"after": after, "seconds": round(seconds, 3), "late": late, "wrong": "; ".join(filter(None, wrong))}


def _start(victim: Victim, folder: Path) -> subprocess.Popen[bytes]:
    # One thread: sums in another order have other last bits.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (folder / "output").open("wb") as output, (folder / "messages").open("wb") as messages:
        return subprocess.Popen(
            victim.command(folder),
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=messages,
            start_new_session=True,
        )


def _finish(victim: Victim, process: subprocess.Popen[bytes], folder: Path) -> None:
    try:
        status = process.wait(_LONGEST_RUN)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise VictimError(f"{victim.name} did not end within {_LONGEST_RUN} s") from None
    if status:
        said = (folder / "messages").read_text(encoding="utf-8", errors="replace").strip()
        raise VictimError(f"{victim.name} ended with status {status}: {said[-500:]}")


def _earlier(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The state of a run with the same settings; empty if there is none."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and state.get("settings") == settings else {}


def render(result: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows, lines = [], []
    for name, attempts in result["victims"].items():
        early = sum(one["after"] == "start" for one in attempts)
        rows.append([name, len(attempts), early, sum(bool(one["wrong"]) for one in attempts)])
        lines += [
            f"* {name}, killed {one['seconds']} s after {one['after']}: {one['wrong']}"
            for one in attempts
            if one["wrong"]
        ]
    table = markdown_table(["", "kills", "of these before the work began", "wrong afterwards"], rows)
    return "\n\n".join([table, "\n".join(lines) if lines else "Nothing is wrong."]) + "\n"
