"""`bench` is not installed: the repository is put on the path, wherever this folder is run from."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[3])]
