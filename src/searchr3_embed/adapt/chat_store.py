"""The file in which the answers of a chat endpoint are kept, one line the moment each arrives.

A line settles a request (an answer, or the reason why there will be none), or says what failed attempts have cost.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def request_key(body: Mapping[str, Any]) -> str:
    """Content hash of a request. The address is not part of it, so a server may move while a run is interrupted."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_store(store: Path) -> Iterator[dict[str, Any]]:
    """Yields the complete lines of a file of answers; half a line at the end, left by a kill, is passed over.

    Raises:
        ValueError: Another line is not an answer; the message names file and line.
    """
    if not store.exists():
        return
    for number, line in enumerate(store.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            entry = json.loads(line)
            complete = {"key", "content", "dropped", "requests", "tokens"} <= set(entry)
        except (ValueError, TypeError):
            complete = False
        if not complete:
            raise ValueError(f"{store}:{number} is not an answer of an LLM; is this the right file?")
        yield entry


def is_final(line: Mapping[str, Any]) -> bool:
    """Whether a line of the store settles its request; the others only say what failed attempts have cost."""
    return bool(line["dropped"]) or line["content"] is not None


def mend(store: Path) -> None:
    """Cuts off half a line at the end, so that the next line does not become a part of it."""
    if store.exists():
        content = store.read_bytes()
        os.truncate(store, content.rfind(b"\n") + 1)
