"""conv_error: an activation's derivative, the parent's error, dW and db of a convolution, in one launch.

Results are those that somebody reads; the gradients perhaps with a gain, each perhaps added to what others gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.activations import Activated, sloped
from pccompile.backends.patterns.calls import At, call, if_any
from pccompile.backends.patterns.contributions import Contributions, of_outputs
from pccompile.backends.patterns.convolutions import NO_POOL, Convolution, Pooling, convolution
from pccompile.backends.patterns.match import Match, Pattern, distinct, only_user
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
    found, contributions = convolution(heart), of_outputs(heart)
    if found is not None and contributions is not None:
        yield from (_match(heart, found, each, entry) for each in contributions.best_first())


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


def _match(heart: fx.Node, found: Convolution, contributions: Contributions, entry: Entry) -> Match:
    read = (entry.error, entry.residual, entry.argmax, found.x, found.weight, *contributions.read)
    replaced = distinct(*entry.nodes, heart, *contributions.nodes)

    def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
        args = (
            at(entry.error),
            if_any(at, entry.residual),
            if_any(at, entry.argmax),
            at(found.x),
            at(found.weight),
            entry.activation.name,
            entry.activation.negative_slope,
            found.form,
            entry.pool.kind,
            entry.pool.window,
            *contributions.targets(graph, at),
            contributions.factor(at),
            convolution_precision(),
        )
        node = call(graph, sweep_images, args, "conv_error")
        node.meta["val"] = contributions.kinds
        return contributions.written(graph, node)

    return Match("conv_error", replaced, contributions.results, distinct(*read), write, kinds=entry.kinds)


PATTERN = Pattern("conv_error", "error", frozenset([torch.ops.aten.convolution_backward.default]), _candidates)
