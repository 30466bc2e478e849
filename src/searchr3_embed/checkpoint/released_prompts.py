"""Released Search-R3 checkpoints: plain language models whose prompts are in the ``example.py`` beside the weights."""

from __future__ import annotations

import ast
from pathlib import Path

from searchr3_embed.checkpoint import CheckpointError
from searchr3_embed.files import first_line

EXAMPLE_FILE = "example.py"
# Their example runs with this length; the authors say that quality drops on long text.
MAX_LENGTH = 1024


def read_prompts(path: Path) -> dict[str, str]:
    """Reads the system prompts of a released checkpoint from its ``example.py``, which is parsed and never executed.

    Returns:
        ``{"direct": ..., "reasoning": ...}`` from the constants ``EMBEDDING`` and ``GENERATION``, verbatim.

    Raises:
        CheckpointError: The file is not Python, or lacks one of the two string constants.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise CheckpointError(f"{path} can't be parsed ({first_line(error)}); pass system_prompts instead.") from error
    constants = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        try:
            text = ast.literal_eval(value)
        except ValueError:
            continue
        if isinstance(text, str):
            constants.update({target.id: text for target in targets if isinstance(target, ast.Name)})
    missing = [name for name in ("EMBEDDING", "GENERATION") if name not in constants]
    if missing:
        raise CheckpointError(f"{path} lacks the string constants {missing}; pass system_prompts instead.")
    return {"direct": constants["EMBEDDING"], "reasoning": constants["GENERATION"]}
