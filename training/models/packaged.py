"""Makes the folder that a package carries of a checkpoint with a thinker: the encoder in 16 bits, read as float32.

    python -m training.models.packaged --checkpoint runs/rl/model --out src/searchr3_embed/weights/searchr3-mini

Half the size on disk, and the same vectors but for rounding: the lowest cosine to the encoder's is printed. The
configuration still says float32, so that the stock class computes in float32 and warns of nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from searchr3_embed import ReasoningEmbedder, interruption
from searchr3_embed.checkpoint.thinker import has_thinker
from searchr3_embed.encoder_identity import cosines
from searchr3_embed.folders import replacing_files

WEIGHTS = "model.safetensors"
# Half precision changes less than that; anything more is a mistake.
LEAST_COSINE = 0.99999


def pack(checkpoint: Path, out: Path, dtype: torch.dtype = torch.float16) -> float:
    """Writes the folder; other files that ``out`` holds, such as a model card, stay.

    Args:
        checkpoint: A folder with an encoder and a thinker.
        out: The folder to write.
        dtype: Of the encoder's weights on disk.

    Returns:
        The lowest cosine between the encoder's vectors of the probe texts, before and after.

    Raises:
        ValueError: The folder is of another kind, or the encoder's vectors change by more than rounding.
        OSError: A folder can't be read or written.
    """
    if not has_thinker(checkpoint) or not (checkpoint / WEIGHTS).is_file():
        raise ValueError(f"{checkpoint} is no encoder with a thinker whose weights are in {WEIGHTS}.")
    before = ReasoningEmbedder(checkpoint, device="cpu").probe()
    with replacing_files(out) as scratch:
        shutil.copytree(checkpoint, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))
        weights = load_file(checkpoint / WEIGHTS)
        narrow = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
        save_file(narrow, scratch / WEIGHTS, metadata={"format": "pt"})
        lowest = float(np.min(cosines(before, ReasoningEmbedder(scratch, device="cpu").probe())))
        if lowest < LEAST_COSINE:
            raise ValueError(
                f"In {dtype} the encoder's vectors change: lowest cosine {lowest:.6f}, at least {LEAST_COSINE} "
                "is asked for. Take another dtype."
            )
    return lowest


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    parser = argparse.ArgumentParser(
        prog="python -m training.models.packaged",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of an encoder with a thinker")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--dtype", choices=["float16", "bfloat16", "float32"], default="float16", help="of the encoder on disk"
    )
    args = parser.parse_args(argv)
    try:
        lowest = pack(args.checkpoint, args.out, getattr(torch, args.dtype))
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB, lowest cosine to the encoder's vectors {lowest:.7f}")
    return 0


if __name__ == "__main__":
    sys.exit(interruption.run(main, "interrupted; the same command begins again, and nothing half written is left"))
