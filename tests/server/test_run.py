"""The command as a process: it says where it listens, and SIGTERM leaves no call unanswered."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Command
from tests.server.real import Process


def post(address: str, **body: Any) -> tuple[int, dict[str, Any], Any]:
    content = json.dumps({"model": "tiny", **body}).encode()
    request = urllib.request.Request(address + "/v1/embeddings", content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=280) as reply:
            return reply.status, json.load(reply), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), error.headers


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM to handle there")
def test_sigterm_answers_what_was_taken(thinker_checkpoint: Path) -> None:
    arguments = ["--model", str(thinker_checkpoint), "--served-name", "tiny", "--port", "0", "--log-format", "json"]
    with Process(*arguments, "--document-batch", "2", "--drain-seconds", "300") as server:
        address = server.until_ready()
        found: list[tuple[int, dict[str, Any], Any]] = []
        texts = ["which river flows through paris and where does it end?"] * 400
        calls = [threading.Thread(target=lambda: found.append(post(address, input=texts))) for _ in range(2)]
        for call in calls:
            call.start()
        until = time.monotonic() + 60
        while 'searchr3_waiting_calls{kind="document"} 2.0' not in _metrics(address):
            assert time.monotonic() < until, "the calls were answered before all had come"
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        refused = 0
        while refused != 503:  # the signal is on its way
            refused, body, headers = post(address, input="late")
            assert not found or refused == 503
        assert body["error"]["code"] == "draining" and headers["Retry-After"]
        for call in calls:
            call.join(280)
        assert [(status, len(body["data"])) for status, body, _ in found] == [(200, 400)] * 2
        assert server.wait() == 0, server.lines
    requests = [json.loads(line) for line in server.lines if '"request_id"' in line]
    assert [line["status"] for line in requests].count(200) == 2 and 503 in {line["status"] for line in requests}


def _metrics(address: str) -> str:
    with urllib.request.urlopen(address + "/metrics", timeout=60) as reply:
        return reply.read().decode()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM to handle there")
def test_sigterm_has_a_limit(thinker_checkpoint: Path) -> None:
    arguments = ["--model", str(thinker_checkpoint), "--served-name", "tiny", "--port", "0", "--drain-seconds", "0"]
    with Process(*arguments, "--document-batch", "1") as server:
        address = server.until_ready()

        def call() -> None:
            try:
                post(address, input=["which river flows through paris and where does it end?"] * 2000)
            except (OSError, ValueError):  # cut off, or an error that is not ours
                pass

        caller = threading.Thread(target=call)
        caller.start()
        while 'searchr3_waiting_calls{kind="document"} 1.0' not in _metrics(address):
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 2
        caller.join(60)
    assert server.lines[-1] == "searchr3: error: 1 calls were not answered within 0 s"


@pytest.mark.slow
def test_what_cannot_be_served_ends_the_command(tmp_path: Path, thinker_checkpoint: Path) -> None:
    with Process("--model", str(tmp_path), "--port", "0") as server:
        assert server.wait(240) == 2
    assert server.lines[-1].startswith("searchr3: error: ") and str(tmp_path) in server.lines[-1]
    with Process("--model", str(thinker_checkpoint), "--port", "0") as first:
        port = first.until_ready().rpartition(":")[2]
        with Process("--model", str(thinker_checkpoint), "--port", port) as second:
            assert second.wait(240) == 2
        assert second.lines[-1] == f"searchr3: error: the server can't listen on 127.0.0.1:{port}"
        first.process.send_signal(signal.SIGINT)
        assert first.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host"),
        (["--port", "70000"], "expected a port from 0 to 65535, got '70000'"),
        (["--max-texts", "0"], "expected an integer >= 1, got '0'"),
        (["--api-key", "two words"], "An API key must be printable ASCII"),
        (["--token-ids", "any"], "'any'"),
    ],
)
def test_bad_arguments(command: Command, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEARCHR3_API_KEY", raising=False)
    said = command.fails("serve", *arguments)
    assert message in said or "--allow-no-key" in said


def test_without_the_extra_there_is_a_sentence(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("searchr3_embed.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install 'searchr3-embed[serve]'" in command.fails("serve")
