"""``python -m training.sft``."""

import sys

from training.sft.train import main

if __name__ == "__main__":
    sys.exit(main())
