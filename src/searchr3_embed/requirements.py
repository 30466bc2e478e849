"""Checks what an integration needs, and names the command that installs what is missing or too old."""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import Requirement


def check(distribution: str) -> None:
    """Checks that what an installed distribution depends on is there, in a version that it accepts.

    The requirements are read from its own metadata, so the message always agrees with its pyproject.toml.

    Args:
        distribution: Name of the distribution, such as ``"langchain-searchr3"``.

    Raises:
        ImportError: A package is missing or has another version; the message names it and the command to install it.
    """
    for line in importlib.metadata.requires(distribution) or []:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            found = "which is not installed"
        else:
            if needed.specifier.contains(version, prereleases=True):
                continue
            found = f"but {version} is installed"
        raise ImportError(
            f"{distribution} needs {needed.name}{needed.specifier}, {found}. "
            f'Run: pip install "{needed.name}{needed.specifier}"',
            name=needed.name,
        )
