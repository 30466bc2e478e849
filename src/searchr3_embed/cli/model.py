"""Loading the model that a command was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from searchr3_embed.cli.arguments import CommandError

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder


def load(name: str, *, device: str | None, verbose: bool) -> ReasoningEmbedder:
    """Load a model, and say in a sentence what is wrong with the device.

    Raises:
        CommandError: There is no such device here.
        CheckpointError: The model can't be found, is damaged, or was never trained to embed.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    if device is not None:
        try:
            kind = torch.device(device).type
        except RuntimeError as error:
            raise CommandError(f"--device: expected cpu, cuda, cuda:1, mps ..., got {device!r}") from error
        here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not here.get(kind, True):
            raise CommandError(f"--device: there is no {device!r} here (torch {torch.__version__})")
    if verbose:
        transformers_logging.set_verbosity_info()
    else:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    from searchr3_embed.embedder import ReasoningEmbedder

    return ReasoningEmbedder(name, device=device)
