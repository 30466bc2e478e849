"""A few seconds of the soak, and that growth, errors and rising waiting times would be found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import soak
from benchmarks.fuzz.subjects import Subject, subject

SETTINGS = {"minutes": 30, "callers": 2, "model": "small", "seed": 0}


@pytest.fixture(scope="module")
def tried(thinker_checkpoint: Path) -> Subject:
    return subject("thinker", str(thinker_checkpoint), "cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
async def test_callers_get_what_is_theirs(tried: Subject) -> None:
    log = await soak.soak(tried, 1.5, callers=6)
    result = soak.summary(log, 1.5, SETTINGS)
    assert (result["failed"], result["errors"], result["differing"]) == (0, [], 0)
    assert sum(result["calls"].values()) == len(log.waits) > 6 and result["thinking"] > 0
    assert len(log.memory) > 10 and min(held for _, held in log.memory) > 10_000_000
    assert "calls" in soak.render(result)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
async def test_failing_calls_are_counted_and_named(tried: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("out of order")

    monkeypatch.setattr(tried.embedder, "aencode_document", broken)
    result = soak.summary(await soak.soak(tried, 0.5, callers=8), 0.5, SETTINGS)
    assert result["failed"] > 0 and "aencode_document: RuntimeError('out of order')" in result["errors"]
    assert f"{result['failed']} calls failed or gave wrong vectors" in result["wrong"]


def steady(growth: float = 0.0, slower: float = 1.0) -> soak.Log:
    """A log of half an hour, in which memory or waiting times rise evenly after the warm-up."""
    log = soak.Log(calls={"aencode_query": 1800}, thinking=1800)
    for second in range(1800):
        share = max(0.0, (second - 300) / 1500)
        log.memory.append((second, round(1e9 * (1 + growth * share))))
        log.waits.append((second, 0.1 * (1 + (slower - 1) * share)))
    return log


def test_what_stays_as_it_was_is_not_blamed() -> None:
    result = soak.summary(steady(growth=0.015, slower=1.2), 1800, SETTINGS)
    assert result["wrong"] == [] and result["memory_growth"] == pytest.approx(0.0145, abs=1e-3)
    assert result["p99_ratio"] == pytest.approx(1.13, abs=0.02)
    assert len(result["spans"]) == 30 and "Nothing is wrong." in soak.render(result)


@pytest.mark.parametrize(
    "log, wrong",
    [
        (steady(growth=0.03), ["memory grew by 2.9%"]),
        (steady(slower=2.0), ["the p99 grew to 1.58 times what it was"]),
        (soak.Log(), ["memory was not sampled", "no call ended"]),
    ],
)
def test_what_grows_is_found(log: soak.Log, wrong: list[str]) -> None:
    result = soak.summary(log, 1800, SETTINGS)
    assert result["wrong"] == wrong and wrong[0] in soak.render(result)


def test_more_than_a_few_other_thoughts_are_wrong() -> None:
    log = steady()
    log.differing = 2
    assert soak.summary(log, 1800, SETTINGS)["wrong"] == ["2 of 1800 thinking vectors differ"]


@pytest.mark.parametrize("arguments", [["--minutes", "0"], ["--callers", "-3"]])
def test_bad_numbers_are_named(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        soak.main([*arguments, "--out", str(tmp_path / "out")])
    assert arguments[1] in capsys.readouterr().err
