"""A slice of the killing, and that half a file or a lost one would be found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.kill import run
from benchmarks.kill.victims import Victim, victims

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")

# Counts to thirty in a file. The careful one goes on and writes whole files; the careless one does not.
CAREFUL = """
import os, sys, time
done = int(open("n").read()) if os.path.exists("n") else 0
open("begun", "w").close()
while done < 30:
    time.sleep(0.01)
    done += 1
    with open("new", "w") as file:
        file.write(str(done))
    os.replace("new", "n")
"""
CARELESS = """
import time
for _ in range(30):
    with open("n", "a") as file:
        file.write("x")
    open("begun", "w").close()
    time.sleep(0.01)
"""


def counting(program: str) -> Victim:
    def differs(whole: Path, tried: Path) -> str:
        return "" if (whole / "n").read_bytes() == (tried / "n").read_bytes() else "other numbers"

    return Victim(
        "counting",
        lambda folder: None,
        lambda folder: [sys.executable, "-c", f"import os; os.chdir({str(folder)!r})\n{program}"],
        lambda folder: (folder / "begun").exists(),
        differs,
        lambda folder: "torn" if program == CARELESS else "",
    )


def test_what_goes_on_as_it_should_is_not_blamed(tmp_path: Path) -> None:
    settings = {"times": 3, "seed": 0}
    result = run.run([counting(CAREFUL)], settings, tmp_path, tmp_path / "out")
    attempts = result["victims"]["counting"]
    assert [one["wrong"] for one in attempts] == [""] * 3
    assert [one["after"] for one in attempts] == ["start", *["the beginning of its work"] * 2]
    assert "Nothing is wrong." in (tmp_path / "out" / "kill.md").read_text()
    # Done already, so that nothing is run.
    assert run.run([counting("raise SystemExit(9)")], settings, tmp_path, tmp_path / "out") == result


def test_what_is_lost_is_found(tmp_path: Path) -> None:
    result = run.run([counting(CARELESS)], {"times": 2, "seed": 0}, tmp_path, tmp_path / "out")
    assert result["victims"]["counting"][1]["wrong"] == "torn; other numbers"
    assert "torn; other numbers" in run.render(result)


def test_a_command_that_fails_by_itself_is_named(tmp_path: Path) -> None:
    failing = counting("import sys; print('no luck', file=sys.stderr); sys.exit(9)")
    with pytest.raises(run.VictimError, match="counting ended with status 9: no luck"):
        run.run([failing], {"times": 1, "seed": 0}, tmp_path, tmp_path / "out")


def test_bad_numbers_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(["--times", "0", "--out", str(tmp_path / "out")])
    assert "--times must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "rl", "search", "save"])
def test_killed_and_started_again_it_ends_the_same(name: str, tmp_path: Path) -> None:
    result = run.run(victims(tmp_path, [name]), {"times": 2, "seed": 1}, tmp_path, tmp_path / "out")
    (attempts,) = result["victims"].values()
    assert [one["wrong"] for one in attempts] == ["", ""], run.render(result)
