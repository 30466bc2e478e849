"""Waiting for a server."""

from __future__ import annotations

import time

from starlette.testclient import TestClient


def until_ready(client: TestClient, seconds: float = 60.0) -> TestClient:
    until = time.monotonic() + seconds
    while client.get("/ready").status_code != 200:
        assert time.monotonic() < until, "the server did not become ready"
        time.sleep(0.01)
    return client
