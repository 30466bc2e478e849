"""What a bug report needs. What can't be found out is reported as such; nothing here fails."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from searchr3_embed.search.vector_cache import default_cache_folder

_LIBRARIES = (
    "searchr3-embed",
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "faiss-cpu",
    "numpy",
    "tqdm",
)


def report(cache_folder: str | None) -> dict[str, dict[str, Any]]:
    """Versions, devices, the packaged checkpoint and the cache.

    Args:
        cache_folder: Folder of document vectors; None for the default one.

    Returns:
        Section -> name -> value, all of them JSON values.
    """
    versions: dict[str, Any] = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    system = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "processor": processor_name(),
        "cpus": os.cpu_count(),
    }
    return {
        "system": system,
        "versions": versions,
        "torch": _guarded(_torch_report),
        "packaged checkpoint": _guarded(_checkpoint_report),
        "cache": _guarded(lambda: _cache_report(cache_folder)),
    }


def _guarded(section: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return section()
    except Exception as error:  # a broken installation is what this command is for
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def _cache_report(cache_folder: str | None) -> dict[str, Any]:
    folder = Path(cache_folder) if cache_folder else default_cache_folder()
    if folder is None:
        return {"folder": None, "error": "there is no home folder, so vectors are not kept"}
    files = list(folder.glob("*.npz"))
    return {"folder": str(folder), "files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def _torch_report() -> dict[str, Any]:
    import torch
    from sentence_transformers.util import get_device_name

    report = {"threads": torch.get_num_threads(), "default device": get_device_name(), "cuda": torch.version.cuda}
    for number in range(torch.cuda.device_count()):
        report[f"cuda:{number}"] = torch.cuda.get_device_name(number)
    report["mps"] = torch.backends.mps.is_available()
    return report


def _checkpoint_report() -> dict[str, Any]:
    from searchr3_embed.checkpoint import load, locate, thinker
    from searchr3_embed.question_side import ENCODER

    folder = locate.packaged_folder()
    if not (folder / "config.json").is_file():
        return {"folder": str(folder), "error": "missing: this installation has no packaged weights"}
    report = dict(load.describe(folder))
    if thinker.has_thinker(folder):
        settings = thinker.read_settings(folder)
        shares = settings.base == ENCODER
        report |= {"encoder": settings.encoder, "thinker": "the encoder's own layers" if shares else settings.base}
    for weights in sorted(folder.rglob("*.safetensors")):
        with open(weights, "rb") as file:
            name = weights.relative_to(folder).as_posix()
            report[f"sha256 of {name}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return report


def processor_name() -> str:
    """The processor's name; on Linux platform.processor() knows only its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
