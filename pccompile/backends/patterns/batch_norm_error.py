"""batch_norm_error: the way back through a batch normalisation and what follows it, in one launch.

That is the activation's derivative and, before it, a division of the error, as an average over positions has one. The
error with respect to the sum is written where a skip reads it; where the skip was normalised itself, both are one
launch. Results are those that somebody reads; the gradients perhaps with a gain, each perhaps added to others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.activations import IDENTITY, Activated, sloped
from pccompile.backends.patterns.batch_norm_predict import inner_is_one
from pccompile.backends.patterns.calls import At, as_vector, call, if_any, item
from pccompile.backends.patterns.contributions import KINDS, Contributions, of_outputs
from pccompile.backends.patterns.match import Match, Pattern, argument, declined, distinct, only_user
from pccompile.kernels.batch_norm.branches import sweep_branches

__all__ = ["PATTERN"]

_aten = torch.ops.aten
_HEARTS = frozenset([_aten.native_batch_norm_backward.default])


@dataclass(frozen=True)
class _Way:
    """The way back through one normalisation."""

    node: fx.Node
    x: fx.Node
    weight: fx.Node | None
    mean: fx.Node
    rstd: fx.Node
    contributions: Contributions

    @property
    def added(self) -> _Way:
        """With the sums that read its results."""
        return replace(self, contributions=next(self.contributions.best_first()))

    @property
    def read(self) -> tuple[fx.Node | None, ...]:
        """What it reads beside the error."""
        return self.x, self.weight, self.mean, self.rstd, *self.contributions.read


@dataclass(frozen=True)
class _Entry:
    """How the error comes to the normalisations: nodes that go, what they start from, what else they read."""

    d: fx.Node
    nodes: tuple[fx.Node, ...]
    error: fx.Node
    residual: fx.Node | None = None
    activation: Activated = IDENTITY
    factor: float = 1.0


def _candidates(heart: fx.Node) -> Iterator[Match]:
    way = _way(heart)
    if way is None:
        return
    d: fx.Node = argument(heart, "grad_out")
    for ways in [*_pairs(way, d), (way,)]:
        for entry in _entries(d):
            added = tuple(each.added for each in ways)
            for found in [added, ways] if added != ways else [ways]:
                yield _match(found, entry)


def _way(node: fx.Node) -> _Way | None:
    x, weight, mean, rstd = (argument(node, name) for name in ("input", "weight", "save_mean", "save_invstd"))
    if not argument(node, "train") or mean is None or rstd is None:
        declined(node, "running statistics have no kernel")
        return None
    contributions = of_outputs(node)
    if contributions is None:
        return None
    kinds = [x.meta["val"]]
    if "parent" in contributions.parts:
        kinds.append(contributions.parts["parent"].result.meta["val"])
    fits = mean.meta["val"].dtype is torch.float32 and kinds[0].numel() and all(map(inner_is_one, kinds))
    return _Way(node, x, weight, mean, rstd, contributions) if fits else None


def _pairs(way: _Way, d: fx.Node) -> Iterator[tuple[_Way, _Way]]:
    """With another normalisation that was added: its error is the same."""
    for user in d.users:
        alike = user is not way.node and user.target in _HEARTS and argument(user, "grad_out") is d
        other = _way(user) if alike else None
        if other is not None and other.x.meta["val"].shape == way.x.meta["val"].shape:
            yield way, other
            return


def _entries(d: fx.Node) -> Iterator[_Entry]:
    """What the kernel computes of the error first, most first."""
    slope = sloped(d)
    if slope is not None and inner_is_one(d.meta["val"]) and inner_is_one(slope.residual.meta["val"]):
        divided = _divided(slope.error, d)
        if divided is not None:
            source, divisor = divided
            yield _Entry(d, (slope.error, d), source, slope.residual, slope.activation, 1.0 / divisor)
        yield _Entry(d, (d,), slope.error, slope.residual, slope.activation)
    yield _Entry(d, (), d)


def _divided(error: fx.Node, reader: fx.Node) -> tuple[fx.Node, float] | None:
    """What an error that nobody else reads is a quotient of, and the divisor; None if it is none."""
    if error.target is not _aten.div.Scalar or only_user(error) is not reader:
        return None
    source, divisor = error.args
    if not isinstance(source, fx.Node) or not isinstance(divisor, int | float) or divisor == 0:
        return None
    kind = source.meta["val"]
    expanded = all(stride == 0 for stride in kind.stride()[2:])  # over the dimensions after the channels
    return (source, divisor) if expanded or inner_is_one(kind) else None


def _match(ways: tuple[_Way, ...], entry: _Entry) -> Match:
    nodes = {way.node for way in ways}
    keeps = bool(entry.nodes) and not all(user in nodes for user in entry.d.users)
    kept = [entry.d] if keeps else []
    results = (*kept, *(result for way in ways for result in way.contributions.results))
    replaced = distinct(*entry.nodes, *(node for way in ways for node in (way.node, *way.contributions.nodes)))

    def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
        def branch(way: _Way) -> tuple[Any, ...]:
            statistics = (as_vector(graph, at(node)) for node in (way.mean, way.rstd))
            targets, factor = way.contributions.targets(graph, at), way.contributions.factor(at)
            return (at(way.x), if_any(at, way.weight), *statistics, *targets, factor)

        before = entry.d.meta["val"] if keeps else None
        function = entry.activation.name, entry.activation.negative_slope
        strides = None if before is None else tuple(before.stride())
        branches = tuple(branch(way) for way in ways)
        given = (at(entry.error), entry.factor, if_any(at, entry.residual), *function, strides, branches)
        found = call(graph, sweep_branches, given, "batch_norm")
        found.meta["val"] = (before, *(kind for way in ways for kind in way.contributions.kinds))
        written = [item(graph, found, 0, node.meta["val"]) for node in kept]
        for index, way in enumerate(ways):
            written += way.contributions.written(graph, found, first=1 + len(KINDS) * index)
        return written

    inputs = distinct(entry.error, entry.residual, *(node for way in ways for node in way.read))
    beside = tuple(node for way in ways for node in (way.mean, way.rstd))
    return Match("batch_norm", replaced, results, inputs, write, statistics=beside)


PATTERN = Pattern("batch_norm", "error", _HEARTS, _candidates)
