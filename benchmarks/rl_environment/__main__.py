"""``python -m benchmarks.rl_environment``."""

import sys

from benchmarks.rl_environment.run import main

if __name__ == "__main__":
    sys.exit(main())
