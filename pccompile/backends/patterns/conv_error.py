"""conv_error: an activation's derivative, the parent's error, dW and db of a convolution, in one launch.

Results are those that somebody reads; the gradients perhaps with a gain, each perhaps added to what others gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.activations import Activated, sloped
from pccompile.backends.patterns.contributions import (
    KINDS,
    PLACES,
    Contribution,
    gain_of,
    kinds_of,
    of_outputs,
    target,
    with_sum,
)
from pccompile.backends.patterns.convolutions import NO_POOL, Convolution, Pooling, convolution
from pccompile.backends.patterns.match import Match, Pattern, call, item, only_user, view
from pccompile.kernels.conv_error.images import sweep_images
from pccompile.kernels.devices import convolution_precision

__all__ = ["PATTERN", "Entry", "sweeps"]


@dataclass(frozen=True)
class Entry:
    """How an error comes to a convolution.

    Attributes:
        nodes: what is computed of it first: a pooling's and an activation's way back.
        error: what they start from.
        residual, argmax: what else they read.
        kinds: of these, where the kernel reads another kind than the operators did.
    """

    nodes: tuple[fx.Node, ...]
    error: fx.Node
    residual: fx.Node | None = None
    argmax: fx.Node | None = None
    activation: Activated = field(default_factory=lambda: Activated("identity"))
    pool: Pooling = NO_POOL
    kinds: Mapping[fx.Node, Any] = field(default_factory=dict)


def sweeps(heart: fx.Node, entry: Entry) -> Iterator[Match]:
    """The matches of a convolution's backward operator with what comes before it, best first."""
    found, contributions = convolution(heart), of_outputs(heart, PLACES)
    if found is None or not contributions:
        return
    added = {kind: with_sum(contribution) for kind, contribution in contributions.items()}
    if added != contributions:
        yield _match(heart, found, added, entry)
    yield _match(heart, found, contributions, entry)


def _candidates(heart: fx.Node) -> Iterator[Match]:
    d: fx.Node = heart.args[0]  # type: ignore[assignment]
    slope = sloped(d)
    plain = Entry((), d)
    if slope is not None and only_user(d) is heart:
        folded = Entry((d,), slope.error, slope.residual, activation=slope.activation)
        for few, more in zip(sweeps(heart, plain), sweeps(heart, folded), strict=True):
            yield more
            yield few
        return
    yield from sweeps(heart, plain)


def _match(heart: fx.Node, found: Convolution, contributions: Mapping[str, Contribution], entry: Entry) -> Match:
    gain = gain_of(contributions.values())
    onto = [c.onto for c in contributions.values()]
    read = (entry.error, entry.residual, entry.argmax, found.x, found.weight, gain, *onto)
    replaced = [*entry.nodes, heart, *(node for c in contributions.values() for node in c.nodes)]

    def write(graph: fx.Graph, at: Callable[[fx.Node], fx.Node]) -> Sequence[fx.Node]:
        def if_any(node: fx.Node | None) -> fx.Node | None:
            return None if node is None else at(node)

        args = (
            at(entry.error),
            if_any(entry.residual),
            if_any(entry.argmax),
            at(found.x),
            at(found.weight),
            entry.activation.name,
            entry.activation.negative_slope,
            found.form,
            entry.pool.kind,
            entry.pool.window,
            *(target(graph, at, contributions.get(kind)) for kind in KINDS),
            1.0 if gain is None else at(gain),
            convolution_precision(),
        )
        node = call(graph, sweep_images, args, "conv_error")
        node.meta["val"] = kinds_of(contributions)
        return [
            view(graph, item(graph, node, KINDS.index(kind), c.nodes[0].meta["val"]), c.result.meta["val"])
            for kind, c in contributions.items()
        ]

    results = tuple(c.result for c in contributions.values())
    inputs = tuple(dict.fromkeys(node for node in read if node is not None))
    return Match("conv_error", tuple(dict.fromkeys(replaced)), results, inputs, write, kinds=entry.kinds)


PATTERN = Pattern("conv_error", "error", frozenset([torch.ops.aten.convolution_backward.default]), _candidates)
