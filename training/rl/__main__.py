"""``python -m training.rl``."""

import sys

from training.rl.train import main

if __name__ == "__main__":
    sys.exit(main())
