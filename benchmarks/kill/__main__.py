"""``python -m benchmarks.kill``."""

import sys

from benchmarks.kill.run import main

if __name__ == "__main__":
    sys.exit(main())
