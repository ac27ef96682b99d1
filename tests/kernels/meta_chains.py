"""Chains of linear layers on the meta device."""

from __future__ import annotations

from itertools import pairwise

from recorded import Case
from torch import Tensor

from pccompile.kernels.strict_sweep.layout import Chain

WIDTHS = (784, 512, 256, 16)


def meta_chain(case: Case, batch: int, widths: tuple[int, ...] = WIDTHS) -> tuple[Tensor, Chain]:
    """The input and three layers; the last one's activation is the identity."""
    activation = case.activation or "gelu"
    chain = Chain(
        tuple(case.empty(out, in_features) for in_features, out in pairwise(widths)),
        tuple(case.empty(out) for out in widths[1:]),
        (activation, activation, "identity"),
    )
    return case.empty(batch, widths[0]), chain
