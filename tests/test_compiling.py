"""``torch.compile`` and its relatives compile what the methods call, or say why not; for both kinds alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from searchr3_embed import ReasoningEmbedder

TEXTS = ["a river of ice", "what is a river?"]


class Backend:
    """Runs what torch traced as it is, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            self.calls += 1
            return graph(*args)

        return run


def load(folder: Path) -> Any:
    return ReasoningEmbedder(folder, device="cpu", on_truncate="ignore")


@pytest.mark.parametrize("checkpoint", ["mini_checkpoint", "thinker_checkpoint"])
def test_compile_compiles_what_is_called(checkpoint: str, request: pytest.FixtureRequest) -> None:
    embedder, backend = load(request.getfixturevalue(checkpoint)), Backend()
    documents = embedder.encode_document(TEXTS)
    embedder.compile(backend=backend)
    np.testing.assert_allclose(embedder.encode_document(TEXTS), documents, atol=1e-5)
    assert backend.calls
    torch._dynamo.reset()


def test_what_would_not_be_called_is_refused(mini_checkpoint: Path, thinker_checkpoint: Path) -> None:
    for folder in (mini_checkpoint, thinker_checkpoint):
        with pytest.raises(TypeError, match=r"call embedder\.compile\(\) instead"):
            torch.compile(load(folder), backend=Backend())
    network, same, module, head = (load(mini_checkpoint) for _ in range(4))
    network[0].model = torch.compile(network[0].model, backend=Backend())
    same[0].auto_model = torch.compile(same[0].auto_model, backend=Backend())
    module[0] = torch.compile(module[0], backend=Backend())
    head.causal_lm.compile(backend=Backend())
    for embedder in (network, same, module, head):
        for method in (embedder.encode_document, embedder.encode_query, embedder.reason):
            with pytest.raises(ValueError, match=r"Call compile\(\) of the embedder instead"):
                method(TEXTS)
