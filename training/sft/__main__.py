"""``python -m training.sft``."""

import sys

from training.sft.run import main

if __name__ == "__main__":
    sys.exit(main())
