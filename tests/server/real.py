"""A server that listens on a socket: in a thread for its clients, or as the command in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import uvicorn

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.server.app import create_app
from searchr3_embed.server.settings import Settings


@contextlib.contextmanager
def in_thread(embedder: ReasoningEmbedder, **settings: Any) -> Iterator[str]:
    """The address of a server, up to ``/v1``."""
    app = create_app(Settings(served_name="tiny", **settings), embedder)
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="on", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not (server.started and app.state.searchr3.ready):
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


class Process:
    """``searchr3 serve`` as a process, on a port that was free."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "searchr3_embed", "serve", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.lines: list[str] = []
        self.address = ""
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if found := re.search(r"http://[^ ]+(?=/v1 )", line):
                self.address = found[0]
                self._listening.set()
        self._listening.set()

    def until_ready(self, seconds: float = 240.0) -> str:
        until = time.monotonic() + seconds
        assert self._listening.wait(seconds) and self.address, self.lines
        while time.monotonic() < until:
            assert self.process.poll() is None, self.lines
            with contextlib.suppress(OSError):
                urllib.request.urlopen(self.address + "/ready", timeout=10)
                return self.address
            time.sleep(0.05)
        raise AssertionError(self.lines)

    def wait(self, seconds: float = 60.0) -> int:
        status = self.process.wait(seconds)
        self._reader.join(10)
        return status

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
