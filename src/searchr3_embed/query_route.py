"""An encoder whose questions take a route of their own, and whose documents take the encoder's.

Both routes are sentence-transformers' ``Router``, so the stock class gives the same vectors. Nothing is written before
a question is embedded: the route is all that was learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from torch import Tensor, nn
from transformers import PreTrainedModel

from searchr3_embed.conversation import Conversation
from searchr3_embed.engine import decode
from searchr3_embed.prompt_words import Prompts
from searchr3_embed.question_side import QuestionSide

# What a question side is made from if it is no thinker but a route of the encoder's Router.
ROUTE = "query route"
QUESTIONS, DOCUMENTS = "query", "document"


class _NoWords(Conversation):
    """The turns of a question side that writes nothing: the only budget is 0."""

    def __init__(self) -> None:
        self.prompts = Prompts(max_reasoning_tokens=0)
        self.default_max_reasoning_tokens = 0
        self.on_truncate = "ignore"  # the encoder says what it cuts

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def most_reasoning_tokens(self) -> int:
        return 0

    def decode(self, ids: Sequence[int]) -> str:
        return ""


class QueryRoute(QuestionSide):
    """The question side of an encoder with routes.

    Attributes:
        questions: The route of questions, as a pipeline of its own.
        documents: The encoder's own pipeline.

    Args:
        encoder: Its first module is a ``Router`` with the routes ``query`` and ``document``; what stands behind it
            belongs to both.

    Raises:
        ValueError: It is not.
    """

    def __init__(self, encoder: SentenceTransformer) -> None:
        router, *behind = list(encoder.children())
        if not isinstance(router, Router) or not {QUESTIONS, DOCUMENTS} <= set(router.sub_modules.keys()):
            raise ValueError("the encoder has no routes for questions and documents.")
        device = str(encoder.device)

        def pipeline(name: str) -> SentenceTransformer:
            route = [*cast(Any, router.sub_modules[name]), *behind]
            return SentenceTransformer(modules=route, device=device).eval()

        self.questions, self.documents = pipeline(QUESTIONS), pipeline(DOCUMENTS)
        super().__init__(
            model=cast(PreTrainedModel, cast(nn.Module, self.questions)),
            tokenizer=cast(Any, router.tokenizer),
            conversation=_NoWords(),
            projection=torch.zeros(0, 0),
            base=ROUTE,
        )

    @property
    def moves(self) -> bool:
        """True: nobody writes a route that changes nothing."""
        return True

    def pipeline(self, encoder: SentenceTransformer) -> SentenceTransformer:
        """What embeds documents."""
        return self.documents

    def silence(self, count: int) -> list[decode.Generation]:
        """What was written about so many questions: nothing, as with a budget of 0."""
        return [decode.Generation([], False, torch.zeros(0)) for _ in range(count)]

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Nothing: the routes are modules of the encoder, which moves them."""
