"""What turns a model's name into a folder: aliases, the packaged weights, folders, and repositories on the hub."""

from __future__ import annotations

import contextlib
import importlib.resources
import logging
import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub.constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from searchr3_embed.checkpoint import CheckpointError
from searchr3_embed.checkpoint.released_prompts import EXAMPLE_FILE
from searchr3_embed.files import first_line

logger = logging.getLogger(__name__)

PACKAGED = "searchr3"
ALIASES = {
    PACKAGED: "the weights packaged with searchr3-embed",
    "searchr3-small": "ytgui/Search-R3.0-Small",
    "searchr3-large": "ytgui/Search-R3.0-Large",
}

_DOWNLOADED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.md", EXAMPLE_FILE]
_NETWORK_PROBE_SECONDS = 1.0
# Until a wait is told, and until a hub that takes the connection is not waited for any longer.
_SILENT_SECONDS, _REPLY_SECONDS = 5.0, 10.0


def packaged_folder() -> Path:
    """Folder of the packaged default weights."""
    return Path(str(importlib.resources.files("searchr3_embed"))) / "weights" / "searchr3-mini"


def take_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Takes the arguments of :func:`find` out of those of a ``SentenceTransformer``."""
    options = {name: kwargs.pop(name, None) for name in ("revision", "token", "cache_folder")}
    options["cache_folder"] = options["cache_folder"] or os.getenv("SENTENCE_TRANSFORMERS_HOME")
    return options | {"local_files_only": bool(kwargs.pop("local_files_only", False))}


def find(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Resolves an alias, a folder or a hub id to a local folder, downloading it if need be.

    An alias wins over a folder of the same name in the current directory; write ``./name`` for the folder.

    Raises:
        CheckpointError: There is no such alias, folder or repository, or the hub can't be reached.
    """
    text = os.fspath(name)
    if not isinstance(text, str) or not text.strip():
        raise CheckpointError(
            f"The model must be an alias ({', '.join(ALIASES)}), a folder or a hub id, got {name!r}."
        )
    if text == PACKAGED:
        return packaged_folder()
    repository = ALIASES.get(text, text)
    path = Path(text).expanduser()
    if text not in ALIASES and path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(f"{text!r} is a file; pass the folder that holds it.")
    looks_like_path = text.startswith((".", "~", "/", "\\")) or "\\" in text or repository.count("/") != 1
    if looks_like_path:
        raise CheckpointError(
            f"There is no model {text!r}: it is neither an alias ({', '.join(ALIASES)}), nor a folder, nor a hub id "
            "like 'owner/name'."
        )
    return _download(repository, revision, token, cache_folder, local_files_only)


def _download(
    repository: str, revision: str | None, token: bool | str | None, cache_folder: str | None, local_files_only: bool
) -> Path:
    """Fetches a repository from the hub; falls back to the local copy at once when the hub can't be reached."""
    offline = local_files_only or huggingface_hub.constants.HF_HUB_OFFLINE or not _hub_answers()
    try:
        with _telling_what_takes_long(repository):
            folder = huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                token=token,
                cache_dir=cache_folder,
                local_files_only=bool(offline or not _hub_replies(repository, revision, token)),
                allow_patterns=_DOWNLOADED_FILES,
            )
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repository!r} is not on this machine and the hub can't be reached: connect to the network, or copy "
            f"the model into a folder and pass its path; {PACKAGED!r} works without network."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no model {repository!r} on the hub, or it is private: check the name, or run hf auth login."
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(f"{repository!r} can't be downloaded ({first_line(error)}).") from error
    return Path(folder)


@contextlib.contextmanager
def _telling_what_takes_long(repository: str) -> Iterator[None]:
    """Says once in the log what is waited for, if it takes more than some seconds."""
    timer = threading.Timer(_SILENT_SECONDS, logger.warning, ("Waiting for the hub at %s: %r.", _host(), repository))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _host() -> str:
    return urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT).hostname or huggingface_hub.constants.ENDPOINT


def _hub_replies(repository: str, revision: str | None, token: bool | str | None) -> bool:
    """Whether the hub, or what stands before it, says anything at all; its own client would wait without end."""
    hub = huggingface_hub.HfApi(endpoint=huggingface_hub.constants.ENDPOINT)
    try:
        hub.repo_info(repository, revision=revision, token=token, timeout=_REPLY_SECONDS)
    except httpx.TransportError as error:
        logger.warning(
            "The hub at %s takes connections and does not answer (%s): what is on this machine is used.",
            _host(),
            type(error).__name__,
        )
        return False
    except (HfHubHTTPError, OSError, ValueError):  # an answer, which the download gets again and explains
        return True
    return True


def _hub_answers() -> bool:
    """Whether the hub (or a proxy) takes a connection within a second; the hub's client would retry for a minute."""
    endpoint = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    host, port = endpoint.hostname, endpoint.port or (80 if endpoint.scheme == "http" else 443)
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    if proxy and host and not urllib.request.proxy_bypass(host):
        return True  # the proxy resolves and connects; its own errors come quickly
    if not host:
        return False

    connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), timeout=_NETWORK_PROBE_SECONDS).close()
            connected.set()

    # Name resolution has no timeout of its own, so a thread tries it that nobody waits for longer than that.
    prober = threading.Thread(target=connect, daemon=True)
    prober.start()
    prober.join(_NETWORK_PROBE_SECONDS)
    return connected.is_set()
