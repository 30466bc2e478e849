"""What ``torch.compile`` means for an embedder: ``compile`` compiles what its methods call; the rest is refused."""

from __future__ import annotations

from typing import Any

from torch import nn


class Compiling(nn.Module):
    """Mixed into an embedder."""

    question_side: Any

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the passes: the network of a single model, or the encoder's pipeline beside a thinker.

        A thinker is left as it is. Shapes change from call to call: ``dynamic=True`` compiles fewer times. Not for
        ``torch.compile(embedder)``, whose compiled pass no method would call: it raises TypeError.

        Args:
            *args: Those of ``torch.compile``.
            **kwargs: Those of ``torch.compile``.
        """
        if self.question_side is None:
            network: Any = next(self.children())
            network.compile(*args, **kwargs)
        else:
            super().compile(*args, **kwargs)

    @property
    def _initialize_hook(self) -> Any:
        # ``torch.compile(module)`` asks every module whether it has this, before it wraps it; nothing else does.
        raise TypeError(
            "torch.compile(embedder) would return a module whose encode methods are not compiled; call "
            "embedder.compile() instead, which compiles in place."
        )
