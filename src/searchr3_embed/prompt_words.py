"""The words of the two turns: data of a checkpoint, which was trained with them and keeps them in a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from searchr3_embed.files import write_json

PROMPTS_FILE = "conversation.json"
# Where an answer repeats the user's text.
TEXT_SLOT = "{text}"


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The words of the two turns. They belong to a checkpoint and are saved with it (``conversation.json``).

    Attributes:
        embed_token: The special token whose last hidden state is the embedding.
        direct_system: System prompt of the direct turn, or None for the chat template's default.
        direct_answer: The fixed answer of the direct turn; it ends with ``embed_token``.
        reasoning_system: System prompt of the reasoning turn, or None for the chat template's default.
        reasoning_answer: Beginning of the answer that the model continues. ``{text}`` in it repeats the user's text:
            in a causal model only a second reading of a word sees the whole question.
        max_reasoning_tokens: Default budget of generated tokens, the embed token not counted.
        distinct_tokens: Whether a reasoning writes each token at most once: for models that write a list of terms.
    """

    embed_token: str = "<|embed_token|>"
    direct_system: str | None = None
    direct_answer: str = "<|embed_token|>"
    reasoning_system: str | None = None
    reasoning_answer: str = ""
    max_reasoning_tokens: int = 256
    distinct_tokens: bool = False

    def __post_init__(self) -> None:
        if not self.direct_answer.endswith(self.embed_token) or self.direct_answer.count(self.embed_token) != 1:
            raise ValueError(
                f"direct_answer must hold the embed token {self.embed_token!r} once, at its end, got "
                f"{self.direct_answer!r}."
            )
        if self.embed_token in self.reasoning_answer:
            raise ValueError(
                f"reasoning_answer is only the beginning of the model's answer and must not hold the embed token "
                f"{self.embed_token!r}, got {self.reasoning_answer!r}."
            )
        if type(self.max_reasoning_tokens) is not int or self.max_reasoning_tokens < 0:
            raise ValueError(f"max_reasoning_tokens must be an integer >= 0, got {self.max_reasoning_tokens!r}.")

    @classmethod
    def load(cls, folder: str | Path) -> Prompts:
        """Reads ``conversation.json`` from a checkpoint folder.

        Raises:
            ValueError: The file is not a JSON object with the known fields.
        """
        path = Path(folder) / PROMPTS_FILE
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON ({error}).") from error
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) - known:
            unknown = sorted(set(fields) - known) if isinstance(fields, dict) else type(fields).__name__
            raise ValueError(f"{path} must be an object with the fields {sorted(known)}, got {unknown}.")
        if "embed_token" not in fields:  # without it every field would have its default, which is no model's
            raise ValueError(f"{path} holds no 'embed_token'.")
        try:
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Writes ``conversation.json`` into a checkpoint folder."""
        write_json(Path(folder) / PROMPTS_FILE, dataclasses.asdict(self))
