"""Ctrl-C at any moment of a program: one line, status 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from searchr3_embed import interruption

COMMAND = """
import sys, time
print("importing", flush=True)
{imports}
def main():
    print("working", flush=True)
    try:
        {work}
    except BaseException:
        pass  # as libraries do
    return 0
"""
SLEEP = "[time.sleep(0.01) for _ in range(1000)]"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("imports", "work", "moment"),
    [(SLEEP, "pass", "importing"), ("", SLEEP, "working"), ("import atexit; atexit.register(time.sleep, 9)", "", "")],
)
def test_one_line_at_any_moment(imports: str, work: str, moment: str, tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(COMMAND.format(imports=imports, work=work or "pass"))
    # In the background of a shell it is ignored, and the tests may run there.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from searchr3_embed.interruption import run_module; status = run_module('command', 'stopped');"
        "print('ending', flush=True); sys.exit(status)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as program:
        assert program.stdout is not None
        for line in program.stdout:
            if line.strip() == (moment or "ending"):
                program.send_signal(signal.SIGINT)
                break
        _, err = program.communicate(timeout=30)
    assert (program.returncode, err) == (130, "stopped\n" if moment else "")


def test_what_was_set_before_stays_set() -> None:
    before = signal.default_int_handler
    at_first = signal.signal(signal.SIGINT, before)
    with pytest.raises(KeyboardInterrupt), interruption.heard():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with interruption.heard():
        pass
    in_thread = threading.Thread(target=interruption.run, args=(lambda: 0, "never"))
    in_thread.start()
    in_thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as shells start what is in the background
    try:
        with interruption.heard():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, at_first)
