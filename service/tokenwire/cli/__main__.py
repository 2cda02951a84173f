"""``python -m tokenwire.cli``."""

import sys

from tokenwire.cli import main

if __name__ == "__main__":
    sys.exit(main())
