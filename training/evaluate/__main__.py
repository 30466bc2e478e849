"""``python -m training.evaluate``."""

import sys

from searchr3_embed.interruption import run_module

if __name__ == "__main__":
    sys.exit(run_module("training.evaluate.run", "interrupted; --out keeps what is measured, for --resume"))
