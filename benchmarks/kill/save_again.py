"""Saves two checkpoints over one another, again and again; a process that is there to be killed.

python -m benchmarks.kill.save_again FIRST SECOND TARGET ROUNDS
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(first: str, second: str, target: str, rounds: str) -> None:
    """Loads both and saves each of them ``rounds`` times in turn, the second one last.

    Before that it saves them beside the target, as ``first`` and ``second``, for comparison.
    """
    from searchr3_embed import ReasoningEmbedder

    embedders = [ReasoningEmbedder(folder, device="cpu") for folder in (first, second)]
    for name, embedder in zip(("first", "second"), embedders, strict=True):
        embedder.save_pretrained(str(Path(target).with_name(name)), create_model_card=False)
    Path(target).with_name("begun").touch()
    for _ in range(int(rounds)):
        for embedder in embedders:
            embedder.save_pretrained(target, create_model_card=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
