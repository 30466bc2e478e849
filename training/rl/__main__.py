"""``python -m training.rl``."""

import sys

from training.rl.run import main

if __name__ == "__main__":
    sys.exit(main())
