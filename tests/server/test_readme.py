"""What the README says about the server, with the packaged model."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys

import pytest

from searchr3_embed import ReasoningEmbedder
from tests.server.real import Process
from tests.test_readme import SERVED, SHOWN, blocks, commands

DOCUMENTS = ["The csv module reads rows of comma-separated text.", "Glaciers are rivers of ice."]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="shell commands with quotes of another shell")
def test_served_snippets_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    (serve,) = [command for command in commands() if command.startswith("searchr3 serve")]
    curls = [command for command in commands() if command.startswith("curl ")]
    snippets = [body for body in blocks("python") if SERVED in body]
    assert len(curls) == 2 and len(snippets) == 1
    words = shlex.split(serve.replace("8080", "0"))[2:]
    with Process(*words) as server:
        address = server.until_ready()
        found, streamed = [
            subprocess.run(
                shlex.split(command.replace(SERVED, address)), capture_output=True, text=True, check=True
            ).stdout
            for command in curls
        ]
        assert len(json.loads(found)["data"][0]["embedding"]) == 384
        assert '"type":"reasoning.delta"' in streamed and streamed.endswith("data: [DONE]\n\n")
        names = {"embedder": ReasoningEmbedder("searchr3", device="cpu"), "documents": DOCUMENTS}
        capsys.readouterr()
        exec(compile(snippets[0].replace(SERVED, address), "README.md", "exec"), names)
        shown = [line[2:] for lines in SHOWN.findall(snippets[0]) for line in lines.splitlines()]
        assert capsys.readouterr().out.splitlines() == shown
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
