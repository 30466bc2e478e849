"""``python -m training.rl``."""

import sys

from searchr3_embed.interruption import run_module

if __name__ == "__main__":
    sys.exit(run_module("training.rl.train", "interrupted; the same command goes on from the last checkpoint"))
