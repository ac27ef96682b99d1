"""`python -m pccompile`: the command line."""

import sys

from pccompile.cli import main

if __name__ == "__main__":
    sys.exit(main())
