"""What the kernels are, for whoever remembers how long they took."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

import triton

from pccompile.kernels.tables import DIRECTORY

__all__ = ["fingerprint"]


def fingerprint() -> str:
    """A digest of the kernels' sources, of the tuned tables that they read, and of Triton's version."""
    return _digest(os.environ.get(DIRECTORY, ""))


@cache  # the kernels read both once as well
def _digest(tuned: str) -> str:
    own = Path(__file__).parent
    files = [*own.rglob("*.py"), *(own / "tuned").glob("*.json"), *(Path(tuned).glob("*.json") if tuned else ())]
    found = hashlib.sha256(triton.__version__.encode())
    for path in sorted(files):
        found.update(path.name.encode())
        found.update(path.read_bytes())
    return found.hexdigest()
