"""A convolution, its activation and a pooling in one launch, and the way back through all three in another.

The kernel keeps less than the operators do: of a maximum only what act' is read from at it, and which position it was
at, as int8. So prediction and error sweep go together: where the operators kept a value at every position, and the
positions as int64, the graphs hand on what the kernel keeps, under the same keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.activations import Activated, activated, sloped
from pccompile.backends.patterns.conv_error import Entry, sweeps
from pccompile.backends.patterns.conv_predict import ARGMAX, OUTPUT, RESIDUAL, prediction
from pccompile.backends.patterns.convolutions import Convolution, Pooling, convolution, pooling, pooling_backward
from pccompile.backends.patterns.match import Match, argument, declined, items_of, only_user
from pccompile.backends.patterns.pieces import Group, GroupPattern, Pieces, like, readers
from pccompile.kernels.convolution_geometry import kept_residual

__all__ = ["PATTERN"]

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Site:
    """The nodes of a pooled convolution: z, act(z), pool(act(z)) and where its maxima are."""

    convolution: Convolution
    z: fx.Node
    a: fx.Node
    activation: Activated
    node: fx.Node
    pool: Pooling
    pooled: fx.Node
    indices: fx.Node | None

    @property
    def kept(self) -> list[fx.Node]:
        """What the operators keep beside the result."""
        return [node for node in dict.fromkeys((self.a, self.z, self.indices)) if node is not None]


def _find(node: fx.Node, pieces: Pieces) -> Iterator[Group]:
    site = _site(node)
    if site is None:
        return
    names = {kept: pieces.names(kept) for kept in site.kept}
    if any(found is None for found in names.values()):
        declined(node, "what it keeps is read by others than its error")
        return
    stands_for = {name: kept for kept, found in names.items() for name in found or ()}
    users = {user for found in names.values() for user in readers(found or ())} - {site.a, site.node}
    kinds = {name: _kind(site, kept) for name, kept in stands_for.items()}
    ways = [_way_back(user, site, stands_for, kinds) for user in users if pooling_backward(user) == site.pool]
    if any(way is None for way in ways) or not users <= {n for way in ways if way is not None for n in way.replaced}:
        declined(node, "what it keeps is read by others than its error")
        return
    read = [kept for kept in site.kept if kept.users.keys() - {site.a, site.node}]
    results = {site.pooled: OUTPUT, **{kept: _place(site, kept) for kept in read}}
    replaced = (site.z, site.a, site.node, site.pooled, *site.kept)
    writer = prediction(
        site.convolution, replaced, results, site.activation, site.pool, {kept: kinds[kept] for kept in read}
    )
    changed = {name: kinds[name] for name in stands_for if name.op == "placeholder"}
    yield Group("conv_predict", node, (*(way for way in ways if way is not None), writer), changed)


def _site(node: fx.Node) -> _Site | None:
    pool = pooling(node)
    a = argument(node, "self")
    activation = activated(a)
    z = a if activation is None else a.args[0]
    if pool is None or z.target is not _aten.convolution.default:
        return None
    found = convolution(z)
    items = {0: node} if pool.kind == "average" else items_of(node)
    if found is None or items is None or 0 not in items:
        return None
    return _Site(found, z, a, activation or Activated("identity"), node, pool, items[0], items.get(1))


def _place(site: _Site, kept: fx.Node) -> int:
    """Which part of the kernel's results goes under the name of what the operators kept."""
    if kept is site.indices:
        return ARGMAX
    needed = kept_residual(site.activation.name, site.pool.kind)
    if needed == "nothing" or kept is not (site.z if needed == "preactivation" else site.a):
        return OUTPUT
    return RESIDUAL


def _has_residual(site: _Site, kept: fx.Node | None) -> bool:
    """Whether act' can be read from what goes under the name of this node."""
    if kept_residual(site.activation.name, site.pool.kind) == "nothing":
        return kept in (site.a, site.z)
    return kept is not None and _place(site, kept) == RESIDUAL


def _kind(site: _Site, kept: fx.Node) -> Any:
    """A stand-in for what goes under its name."""
    pooled = site.pooled.meta["val"]
    if kept is site.indices:
        return like(pooled, torch.int8)
    full = _place(site, kept) == RESIDUAL and site.pool.kind == "average"
    return kept.meta["val"] if full else pooled


def _way_back(
    node: fx.Node, site: _Site, stands_for: Mapping[fx.Node, fx.Node], kinds: Mapping[fx.Node, Any]
) -> Match | None:
    """The match that starts with this pooling's backward operator."""
    argmax = argument(node, "indices") if site.pool.kind == "max" else None
    if stands_for.get(argument(node, "self")) is not site.a or (
        argmax is not None and stands_for.get(argmax) is not site.indices
    ):
        return None
    nodes: tuple[fx.Node, ...] = (node,)
    residual: fx.Node | None = None
    if site.a is not site.z:
        slope_node = only_user(node)
        slope = None if slope_node is None else sloped(slope_node)
        if slope_node is None or slope is None or slope.error is not node or slope.activation != site.activation:
            return None
        if not _has_residual(site, stands_for.get(slope.residual)):
            return None
        nodes, residual = (node, slope_node), slope.residual
    heart = only_user(nodes[-1])
    if heart is None or heart.target is not _aten.convolution_backward.default or heart.args[0] is not nodes[-1]:
        return None
    entry = Entry(
        nodes,
        argument(node, "grad_output"),
        residual,
        argmax,
        site.activation,
        site.pool,
        {name: kinds[name] for name in (residual, argmax) if name is not None},
    )
    return next(sweeps(heart, entry), None)


PATTERN = GroupPattern(frozenset([_aten.max_pool2d_with_indices.default, _aten.avg_pool2d.default]), _find)
