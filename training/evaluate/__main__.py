"""``python -m training.evaluate``."""

import sys

from training.evaluate.run import main

if __name__ == "__main__":
    sys.exit(main())
