"""``python -m searchr3_embed``: the ``searchr3`` command."""

import sys

from searchr3_embed.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
