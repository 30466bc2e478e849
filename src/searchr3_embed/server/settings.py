"""What a server is told: by options of ``searchr3 serve``, or by the environment where others run the app."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import typing
from collections.abc import Mapping
from typing import Any, Literal

TokenIds = Literal["refuse", "model", "openai"]
LongTexts = Literal["truncate", "refuse"]
LogFormat = Literal["text", "json"]

_PREFIX = "SEARCHR3_"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of one server. Each field has an option of ``searchr3 serve`` and a variable, ``SEARCHR3_MAX_TEXTS`` and so on.

    Attributes:
        model: Alias, folder or hub id.
        served_name: What clients call it; None takes the last part of ``model``.
        device: As in ``ReasoningEmbedder``.
        api_keys: Any of these opens the server; none means that it is open to everybody who reaches it.
        allow_no_key: Whether it may be reached from elsewhere without a key.
        token_ids: What token ids as input are: the encoder's own, OpenAI's cl100k_base, or refused.
        long_texts: What happens to a text with more tokens than the encoder reads.
        max_body_mb: Largest body of a request, in MiB.
        max_texts: Most texts in a call.
        max_waiting: Most calls that wait in each of the two queues.
        question_batch: Most questions computed at once.
        document_batch: Most documents computed before the next question has its turn.
        question_cache: Questions whose vectors are remembered; 0 for none.
        drain_seconds: How long calls that were taken may go on after SIGTERM.
        log_format: One line a request, for people or for machines.
        log_texts: Whether the texts are logged too.
    """

    model: str = "searchr3"
    served_name: str | None = None
    device: str | None = None
    api_keys: tuple[str, ...] = ()
    allow_no_key: bool = False
    token_ids: TokenIds = "refuse"
    long_texts: LongTexts = "truncate"
    max_body_mb: int = 16
    max_texts: int = 2048
    max_waiting: int = 256
    question_batch: int = 64
    document_batch: int = 64
    question_cache: int = 0
    drain_seconds: int = 30
    log_format: LogFormat = "text"
    log_texts: bool = False

    def __post_init__(self) -> None:
        for name, accepted in _CHOICES.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {list(accepted)}, got {getattr(self, name)!r}.")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an integer from {least}, got {value!r}.")
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("An API key must be printable ASCII characters without spaces, and not empty.")

    @property
    def name(self) -> str:
        """The model's name in requests and replies."""
        return self.served_name or os.path.basename(os.path.normpath(self.model)) or self.model

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, **given: Any) -> Settings:
        """Settings from variables named after the fields; ``SEARCHR3_API_KEY`` holds keys, commas between them.

        Args:
            environment: None takes the process's.
            **given: Fields that go before the environment; None counts as not given.

        Raises:
            ValueError: A value is not accepted; the message names the variable.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        for name, kind in typing.get_type_hints(cls).items():
            variable = _PREFIX + ("API_KEY" if name == "api_keys" else name.upper())
            if given.get(name) is not None:
                values[name] = given[name]
            elif environment.get(variable):
                values[name] = _parse(variable, environment[variable], kind)
        return cls(**values)

    def check_reach(self, host: str | None) -> None:
        """Refuses an address that others reach if anybody may call.

        Args:
            host: What the server binds to; None where another program decides that.

        Raises:
            ValueError: There is no key, the host is not loopback, and nobody said that this is meant.
        """
        if self.api_keys or self.allow_no_key or (host is not None and _is_loopback(host)):
            return
        where = f"Binding to {host!r}" if host is not None else "Another program that runs the app"
        raise ValueError(
            f"{where} would let everybody who reaches this machine use the model, since no key is set: give --api-key "
            "or SEARCHR3_API_KEY, or --allow-no-key (SEARCHR3_ALLOW_NO_KEY=1) if that is meant."
        )


_CHOICES = {
    "token_ids": typing.get_args(TokenIds),
    "long_texts": typing.get_args(LongTexts),
    "log_format": typing.get_args(LogFormat),
}
_LEAST = {
    "max_body_mb": 1,
    "max_texts": 1,
    "max_waiting": 1,
    "question_batch": 1,
    "document_batch": 1,
    "question_cache": 0,
    "drain_seconds": 0,
}


def _parse(variable: str, text: str, kind: Any) -> Any:
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"{variable} must be an integer, got {text!r}.") from None
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError(f"{variable} must be 1 or 0, got {text!r}.")
        return text.lower() in _TRUE
    if kind == tuple[str, ...]:
        return tuple(key for key in text.replace(",", " ").split() if key)
    return text


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
