"""What the kernels take: one file per operation finds the nodes of a flat graph that one launch computes.

A file has a `PATTERN`: the operators that may be at its heart, and a function from such a node to its candidates, best
first: which nodes would go, and the call that would take their place. To add an operation, add its file and list its
pattern here; patterns are tried in this order, and what one has taken the next ones do not see.

Where a kernel keeps less for the error sweep than the operators do, graphs change together: such a file's pattern finds
groups of matches, those that write and those that read.

    match.py          Pattern and Match, and what patterns ask of nodes
    calls.py          writing a kernel's call into a graph
    pieces.py         Group, and what patterns ask of all graphs of a program
    contributions.py  results of an error sweep: their gains, and the sums that they go into
    activations.py    which ATen operators are the kernels' activations and their derivatives
    convolutions.py   convolutions and poolings that the kernels take
    steps.py          what a step of strict inference has around a layer
"""

from __future__ import annotations

from pccompile.backends.patterns import (
    batch_norm_error,
    batch_norm_predict,
    conv_error,
    conv_pool,
    conv_predict,
    conv_step,
    cross_entropy,
    embedding_error,
    linear_error,
    linear_predict,
    linear_step,
    pointwise,
    recurrence,
    row_norm,
)
from pccompile.backends.patterns.match import Match, Pattern
from pccompile.backends.patterns.pieces import GroupPattern

__all__ = ["GROUPS", "PATTERNS", "Match", "Pattern"]

GROUPS: tuple[GroupPattern, ...] = (conv_step.PATTERN, conv_pool.PATTERN, cross_entropy.PATTERN)

PATTERNS: tuple[Pattern, ...] = (
    batch_norm_predict.PATTERN,
    batch_norm_error.PATTERN,  # before convolutions, which may add to the error that it leaves to a skip
    conv_predict.PATTERN,
    conv_error.PATTERN,
    linear_step.PATTERN,
    linear_predict.PATTERN,
    linear_error.PATTERN,
    *row_norm.PATTERNS,
    embedding_error.PATTERN,
    *recurrence.PATTERNS,
    pointwise.PATTERN,
)
