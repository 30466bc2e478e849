"""A local HTTP server that speaks the chat-completions protocol, for tests of its client."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends: a completion around ``content``, or ``raw`` as it stands."""

    content: str | None = "ok"
    status: int = 200
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # before the reply; the server's end cuts it short
    tokens: int | None = 10  # None: no usage
    finish_reason: str = "stop"

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        message = {"role": "assistant", "content": self.content}
        completion: dict[str, Any] = {"choices": [{"message": message, "finish_reason": self.finish_reason}]}
        if self.tokens is not None:
            completion["usage"] = {"total_tokens": self.tokens}
        return json.dumps(completion).encode()


class ChatServer(ThreadingHTTPServer):
    """Records what it was asked.

    Args:
        answer: Takes the last message's text and how often it was seen before; gives the reply.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[str, int], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.times: list[float] = []
        self.seen: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()  # replies sent with status 200
        self.in_flight = self.most_in_flight = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave early are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with server.lock:
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
            server.bodies.append(body)
            server.authorizations.append(self.headers["Authorization"])
            server.times.append(time.monotonic())
            times_seen = server.seen[text]
            server.seen[text] += 1
        try:
            reply = server.answer(text, times_seen) if self.path == "/v1/chat/completions" else Reply(status=404)
            server.stopped.wait(reply.seconds)
            content = reply.body()
        finally:
            with server.lock:
                server.in_flight -= 1
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        if reply.status == 200:
            with server.lock:
                server.answered[text] += 1

    def log_message(self, *args: Any) -> None:
        """Says nothing on stderr."""


@contextmanager
def chat_server(answer: Callable[[str, int], Reply]) -> Iterator[ChatServer]:
    """Runs a server until the block ends."""
    server = ChatServer(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
