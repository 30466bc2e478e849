"""The machine and the versions that times and the last digits depend on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from searchr3_embed.cli.bug_report import processor_name


def machine_description() -> dict[str, Any]:
    """The machine and the versions that the times and the last digits depend on."""
    import torch

    packages = ("torch", "transformers", "sentence-transformers", "numpy", "bm25s", "pytrec-eval-terrier")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor_name(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
