"""What the kernels take: one file per operation finds the nodes of a flat graph that one launch computes.

A file has a `PATTERN`: the operators that may be at its heart, and a function from such a node to its candidates, best
first: which nodes would go, and the call that would take their place. To add an operation, add its file and list its
pattern here; patterns are tried in this order, and what one has taken the next ones do not see.

    match.py        Pattern and Match, and what patterns ask of nodes
    activations.py  which ATen operators are the kernels' activations and their derivatives
"""

from __future__ import annotations

from pccompile.backends.patterns import linear_error, linear_predict, linear_step
from pccompile.backends.patterns.match import Match, Pattern

__all__ = ["PATTERNS", "Match", "Pattern"]

PATTERNS: tuple[Pattern, ...] = (linear_step.PATTERN, linear_predict.PATTERN, linear_error.PATTERN)
