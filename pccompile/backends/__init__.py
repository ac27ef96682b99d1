"""Back ends: what runs a program. `eager` runs its lowered graphs, `literal` is the reference evaluator on tensors."""

from pccompile.backends.eager import EagerBackend
from pccompile.backends.literal import LiteralBackend
from pccompile.backends.run import Run

__all__ = ["EagerBackend", "LiteralBackend", "Run"]
