"""What the normalisations' patterns share: the call of a kernel that goes back through one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.contributions import (
    KINDS,
    Contribution,
    Kind,
    gain_of,
    kinds_of,
    of_outputs,
    target,
    with_sum,
)
from pccompile.backends.patterns.match import Match, call, item, view

__all__ = ["PLACES", "as_vector", "norm_sweeps"]

PLACES: Mapping[int, Kind] = {0: "parent", 1: "weight", 2: "bias"}


def norm_sweeps(
    kernel: str,
    function: Callable[..., Any],
    heart: fx.Node,
    tensors: Sequence[fx.Node | None],
    statistics: Sequence[fx.Node | None],
    takes: Callable[[torch.Tensor], bool],
) -> Iterator[Match]:
    """The matches of a normalisation's backward operator, best first.

    Args:
        kernel: its name.
        function: the kernel's, of the error, x, weight, mean, rstd, three targets and the gain.
        heart: the operator.
        tensors: error, x and weight.
        statistics: mean and rstd, float32, which are passed as vectors.
        takes: whether the kernel can write the parent's error like this.
    """
    contributions = of_outputs(heart, PLACES)
    if not contributions or ("parent" in contributions and not takes(contributions["parent"].result.meta["val"])):
        return
    added = {kind: with_sum(contribution) for kind, contribution in contributions.items()}
    for found in [added, contributions] if added != contributions else [contributions]:
        yield _match(kernel, function, heart, tensors, statistics, found)


def _match(
    kernel: str,
    function: Callable[..., Any],
    heart: fx.Node,
    tensors: Sequence[fx.Node | None],
    statistics: Sequence[fx.Node | None],
    contributions: Mapping[str, Contribution],
) -> Match:
    gain = gain_of(contributions.values())
    onto = [c.onto for c in contributions.values()]

    def write(graph: fx.Graph, at: Callable[[fx.Node], fx.Node]) -> Sequence[fx.Node]:
        vectors = [None if node is None else as_vector(graph, at(node)) for node in statistics]
        targets = (target(graph, at, contributions.get(kind)) for kind in KINDS)
        read = (None if node is None else at(node) for node in tensors)
        found = call(graph, function, (*read, *vectors, *targets, 1.0 if gain is None else at(gain)), kernel)
        found.meta["val"] = kinds_of(contributions)
        return [
            view(graph, item(graph, found, KINDS.index(kind), c.nodes[0].meta["val"]), c.result.meta["val"])
            for kind, c in contributions.items()
        ]

    replaced = (heart, *(node for c in contributions.values() for node in c.nodes))
    results = tuple(c.result for c in contributions.values())
    inputs = tuple(dict.fromkeys(n for n in (*tensors, *statistics, gain, *onto) if n is not None))
    beside = tuple(node for node in statistics if node is not None)
    return Match(kernel, tuple(dict.fromkeys(replaced)), results, inputs, write, statistics=beside)


def as_vector(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Statistics as a vector."""
    kind = node.meta["val"]
    return node if kind.dim() == 1 else view(graph, node, kind.reshape(-1))
