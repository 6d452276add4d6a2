"""`python -m mull` is `mull`."""

import sys

from mull.cli import main

if __name__ == "__main__":
    sys.exit(main())
