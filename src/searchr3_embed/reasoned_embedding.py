"""The method of an embedder that gives the traces: what was thought about each text, and where that led."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast, overload

import torch
from torch import Tensor
from tqdm import tqdm

from searchr3_embed.engine import decode
from searchr3_embed.given_reasoning import attach
from searchr3_embed.inputs import as_texts
from searchr3_embed.kinds import encoder_with_thinker, single_model
from searchr3_embed.reasoning_trace import Reasoning, traces

# What may stand in place of the words that the model would write about one text.
GivenReasoning = str | Reasoning | Sequence[int] | None


class ReasonedEmbedding:
    """Mixed into an embedder."""

    @overload  # a str is a sequence of str, too: the first signature that fits is meant
    def reason(  # type: ignore[overload-overlap]
        self,
        texts: str,
        *,
        reasoning: GivenReasoning = ...,
        continue_reasoning: bool | None = ...,
        batch_size: int = ...,
        max_reasoning_tokens: int | None = ...,
        show_progress_bar: bool | None = ...,
        on_token: Callable[[int, int], object] | None = ...,
    ) -> Reasoning: ...

    @overload
    def reason(
        self,
        texts: Sequence[str],
        *,
        reasoning: Sequence[GivenReasoning] | None = ...,
        continue_reasoning: bool | None = ...,
        batch_size: int = ...,
        max_reasoning_tokens: int | None = ...,
        show_progress_bar: bool | None = ...,
        on_token: Callable[[int, int], object] | None = ...,
    ) -> list[Reasoning]: ...

    def reason(
        self,
        texts: str | Sequence[str],
        *,
        reasoning: Any = None,
        continue_reasoning: bool | None = None,
        batch_size: int = 32,
        max_reasoning_tokens: int | None = None,
        show_progress_bar: bool | None = None,
        on_token: Callable[[int, int], object] | None = None,
    ) -> Reasoning | list[Reasoning]:
        """Thinks about texts and returns the trace with the embedding; ``encode_query`` gives the same embeddings.

        Args:
            texts: A text or a sequence of texts.
            reasoning: What was thought already, see ``encode_query``.
            continue_reasoning: Whether the model goes on after that; None means no.
            batch_size: Rows computed at once.
            max_reasoning_tokens: Budget of generated tokens per text; None takes the default.
            show_progress_bar: Whether to show progress; None means no.
            on_token: Called with a text's place and the id of each token as soon as it is written.

        Returns:
            One ``Reasoning``, or a list in the order of ``texts``.

        Raises:
            TypeError: An item is not a text, a reasoning is of another kind, or the budget is not an integer.
            ValueError: A text or an argument is not accepted.
        """
        embedder = cast(Any, self)
        talk = embedder.conversation
        items = attach(as_texts(texts), reasoning, isinstance(texts, str), talk)
        check_flag("continue_reasoning", continue_reasoning)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size <= 0:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}.")
        if not items:
            return []
        prompt = embedder._resolve_prompt(None, "query") or ""
        with torch.inference_mode(), tqdm(total=len(items), desc="Thinking", disable=not show_progress_bar) as bar:
            embedder.eval()
            embeddings, prompts, generations = embedder._think(
                items,
                prompt,
                batch_size,
                max_reasoning_tokens,
                bar.update,
                "query",
                bool(continue_reasoning),
                on_token,
            )
        kind = single_model if embedder.question_side is None else encoder_with_thinker
        vectors = embeddings.float().cpu().numpy()
        results = traces(items, prompts, generations, vectors, talk.decode, kind.finish_reason)
        return results[0] if isinstance(texts, str) else results

    def _think(
        self,
        texts: Sequence[str],
        prompt: str,
        batch_size: int,
        budget: int | None,
        progress: Callable[[int], object],
        task: str | None,
        continue_reasoning: bool,
        on_token: Callable[[int, int], object] | None = None,
    ) -> tuple[Tensor, list[list[int]], list[decode.Generation]]:
        """The vectors after thinking, and for each text the prompt as token ids and what was written or given."""
        embedder = cast(Any, self)
        side, talk = embedder.question_side, embedder.conversation
        if side is None:
            return single_model.think(
                embedder, talk, texts, prompt, batch_size, budget, progress, continue_reasoning, on_token
            )
        return encoder_with_thinker.think(
            embedder,
            side,
            texts,
            prompt,
            batch_size,
            budget,
            progress,
            on_truncate=embedder.on_truncate,
            task=task,
            continue_reasoning=continue_reasoning,
            on_token=on_token,
        )


def check_flag(name: str, value: object) -> None:
    """Raises TypeError unless an option is True, False or None."""
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name} must be True, False or None, got {value!r}.")
