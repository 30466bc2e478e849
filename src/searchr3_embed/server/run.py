"""The server as a process of its own: uvicorn, and an end that leaves no call unanswered.

uvicorn by itself closes its sockets on SIGTERM and raises the signal again. Here new calls get 503 for as long as
those that were taken are being answered, and then the process ends well.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from searchr3_embed.server.app import create_app
from searchr3_embed.server.recording import LineFormatter
from searchr3_embed.server.settings import Settings
from searchr3_embed.server.state import State

logger = logging.getLogger(__name__)

# After the last reply, for connections that are kept open.
_CLOSING_SECONDS = 2


class DrainingServer(uvicorn.Server):
    """Answers what was taken before it ends.

    Args:
        config: Of uvicorn.
        state: Of the app.
        started: Called once with the port, when requests are accepted.
    """

    def __init__(self, config: uvicorn.Config, state: State, started: Callable[[int], object]) -> None:
        super().__init__(config)
        self.state, self._tell = state, started
        self._until: float | None = None
        self.left = 0

    async def startup(self, sockets: list | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self.started:
            self._tell(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to drain; a second Ctrl-C ends at once."""
        if self._until is not None and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
            return
        self.state.draining = True
        self._until = self._until or time.monotonic() + self.state.settings.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Whether it is over: nothing is left to answer, the time is up, or the model can't be loaded."""
        if await super().on_tick(counter) or self.state.failure is not None:
            return True
        if self._until is None or (self.state.in_flight and time.monotonic() < self._until):
            return False
        self.left = self.state.in_flight
        return True


def serve(settings: Settings, host: str, port: int, started: Callable[[int], object] = lambda port: None) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        settings: What the server is told.
        host: Address to bind to.
        port: Port; 0 for any that is free.
        started: Called with the port when requests are accepted; the model may still be loading.

    Raises:
        ValueError: Everybody could reach the server, and nobody said that this is meant.
        RuntimeError: The server can't start, or calls were left unanswered when the time to drain was up.
        CheckpointError: The model can't be found, is damaged, or was never trained to embed.
    """
    settings.check_reach(host)
    app = create_app(settings)
    state: State = app.state.searchr3
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=_CLOSING_SECONDS,
    )
    server = DrainingServer(config, state, started)
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(settings.log_format))
    loggers = [logging.getLogger("searchr3_embed.server"), logging.getLogger("uvicorn.error")]
    before = [(each.level, each.propagate) for each in loggers]
    for each in loggers:
        each.addHandler(handler)
        each.setLevel(logging.INFO)
        each.propagate = False
    try:
        server.run()
    except SystemExit as stop:  # uvicorn has logged why
        raise RuntimeError(f"the server can't listen on {host}:{port}") from stop
    finally:
        for each, (level, propagate) in zip(loggers, before, strict=True):
            each.removeHandler(handler)
            each.setLevel(level)
            each.propagate = propagate
    if state.failure is not None:
        raise state.failure
    if server.left:
        raise RuntimeError(f"{server.left} calls were not answered within {settings.drain_seconds} s")
