"""Servers of a small random encoder with a thinker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.server.app import create_app
from searchr3_embed.server.settings import Settings
from tests.cli.command import Command
from tests.server.waiting import until_ready


@pytest.fixture(scope="session")
def embedder(thinker_checkpoint: Path) -> ReasoningEmbedder:
    return ReasoningEmbedder(thinker_checkpoint, device="cpu", on_truncate="ignore")


@pytest.fixture(scope="session")
def client(embedder: ReasoningEmbedder) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(served_name="tiny"), embedder)) as client:
        yield until_ready(client)


@pytest.fixture
def client_of(embedder: ReasoningEmbedder) -> Iterator[Callable[..., TestClient]]:
    """Makes clients of servers with settings of their own."""
    clients = []

    def make(**settings: Any) -> TestClient:
        client = TestClient(create_app(Settings(**{"served_name": "tiny", **settings}), embedder))
        client.__enter__()
        clients.append(client)
        return until_ready(client)

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    return Command(capsys, tmp_path / "no-model", tmp_path / "cache")
