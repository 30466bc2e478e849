"""The names of what can be trained, and of what that needs; imports nothing heavy, for the command line."""

from __future__ import annotations

import importlib.util

LEARNERS = ("thinker", "question-encoder", "projection")
DEFAULT = "question-encoder"
# For nDCG@10, the significance test, and low-rank differences.
_NEEDED = ("pytrec_eval", "scipy", "peft")


def check_installed(*more: str) -> None:
    """Checks, before anything is computed, that what adapting needs is there.

    Args:
        *more: Further modules.

    Raises:
        ImportError: A package of the extra ``adapt`` is missing; the message names the command to install it.
    """
    for module in (*_NEEDED, *more):
        if importlib.util.find_spec(module) is None:
            raise ImportError(
                f'Adapting needs {module}, which is not installed. Run: pip install "searchr3-embed[adapt]"',
                name=module,
            )
