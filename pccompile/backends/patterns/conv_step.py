"""conv_step: a convolution's prediction, its error and what that gives the parent, in one launch.

    mu = pool(act(x * W + b));  e = v - mu;  W^T * (act'(z) unpool(e))

as the body of a loop of strict inference has them for a layer that the next step moves, views between images and values
included. What the parent's other children give is added in the same launch, and the parent is moved, where nothing else
reads what comes before. Where mu or z is read by somebody else as well, it stays several launches.

It goes before what a pooling keeps is changed (`conv_pool`), so it is a group, of one match.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.activations import Activated, activated, sloped
from pccompile.backends.patterns.calls import At, call, if_any, item, view
from pccompile.backends.patterns.convolutions import (
    NO_POOL,
    Convolution,
    Pooling,
    convolution,
    pooling,
    pooling_backward,
)
from pccompile.backends.patterns.match import VIEWS, Match, argument, declined, distinct, items_of
from pccompile.backends.patterns.pieces import Group, GroupPattern, Pieces
from pccompile.backends.patterns.steps import Pull, compared, pulls
from pccompile.kernels.conv_step.images import step_images
from pccompile.kernels.devices import convolution_precision

__all__ = ["PATTERN"]

_aten = torch.ops.aten
_KERNEL = "conv_step"


@dataclass(frozen=True)
class _Way:
    """From a prediction or an error, which may be a view (the prediction also a copy) of images, to the convolution.

    Attributes:
        nodes: what is passed, but for the convolution and the error themselves.
        start: the error or the prediction.
        images: the same as images.
        end: the convolution, or what goes back into it.
        pool, activation: what is passed.
        kept: what goes back reads of what goes forward.
    """

    nodes: tuple[fx.Node, ...]
    start: fx.Node
    images: fx.Node
    end: fx.Node
    pool: Pooling
    activation: Activated | None
    kept: frozenset[fx.Node]


@dataclass(frozen=True)
class _Layer:
    """A layer in a step of strict inference: its value, its error, and what it gives its parent."""

    convolution: Convolution
    value: fx.Node
    forward: _Way
    back: _Way
    heart: fx.Node
    feedback: fx.Node


def _find(heart: fx.Node, pieces: Pieces) -> Iterator[Group]:
    layer = _layer(heart)
    if layer is not None:
        for pull in pulls(layer.feedback, layer.convolution.x):
            yield Group(_KERNEL, heart, (_match(layer, pull),))


# Finding --------------------------------------------------------------------------------------------------------------


def _layer(heart: fx.Node) -> _Layer | None:
    """The layer whose error this operator carries back, if that is what one launch computes of it; or why not."""
    items, found = items_of(heart) or {}, convolution(heart)
    if found is None or 0 not in items or not _is_predicted(found, heart.graph):
        return None
    back = _back(heart)
    value, prediction = compared(back.start) or (None, None)
    forward = None if prediction is None else _forward(prediction)
    if value is None or forward is None or not _fits(value, forward, back):
        declined(heart, "its error is not v - pool(act(x * W + b))", _KERNEL)
        return None
    given = convolution(forward.end)
    passed = (back.pool, back.activation) == (forward.pool, forward.activation) and back.kept <= forward.kept
    if given is None or (given.x, given.weight, given.form) != (found.x, found.weight, found.form) or not passed:
        declined(heart, "its error is not carried back the way it came", _KERNEL)
        return None
    if len(items) > 1:
        declined(heart, "its weights learn in the same step", _KERNEL)
        return None
    return _Layer(given, value, forward, back, heart, items[0])


def _is_predicted(found: Convolution, graph: fx.Graph) -> bool:
    """Whether what a convolution would be computed from is what one is computed from in this graph, as in a step."""
    predicted = graph.find_nodes(op="call_function", target=_aten.convolution.default)
    return any(node.args[:2] == (found.x, found.weight) for node in predicted)


def _back(heart: fx.Node) -> _Way:
    end: fx.Node = heart.args[0]  # type: ignore[assignment]
    node, nodes, kept, activation = end, [], set(), None
    if (slope := sloped(node)) is not None:
        nodes.append(node)
        node, activation = slope.error, slope.activation
        kept.add(slope.residual)
    pool = pooling_backward(node)
    if pool is not None:
        nodes.append(node)
        kept.update([argument(node, "self"), *([argument(node, "indices")] if pool.kind == "max" else [])])
        node = argument(node, "grad_output")
    start, views = _behind(node, VIEWS)
    return _Way((*nodes, *views), start, node, end, pool or NO_POOL, activation, frozenset(kept))


def _forward(prediction: fx.Node) -> _Way | None:
    images, views = _behind(prediction, (*VIEWS, _aten.clone.default))
    node, nodes, kept = images, [*views], set()
    if node.target is operator.getitem and node.args[1] == 0:
        nodes += (items_of(node.args[0]) or {}).values()  # type: ignore[arg-type]
        kept.update(nodes[len(views) :])
        node = node.args[0]  # type: ignore[assignment]
    pool = pooling(node)
    if pool is not None:
        nodes.append(node)
        node = argument(node, "self")
    activation = activated(node)
    kept.add(node)
    if activation is not None:
        nodes.append(node)
        node = node.args[0]  # type: ignore[assignment]
        kept.add(node)
    if node.target is not _aten.convolution.default:
        return None
    return _Way(tuple(nodes), prediction, images, node, pool or NO_POOL, activation, frozenset(kept))


def _behind(node: fx.Node, operators: Sequence[Any]) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """What a node is a view (or a copy) of, and the nodes in between."""
    passed: list[fx.Node] = []
    while node.target in operators:
        passed.append(node)
        node = node.args[0]  # type: ignore[assignment]
    return node, tuple(passed)


def _fits(value: fx.Node, forward: _Way, back: _Way) -> bool:
    """Whether value, prediction and error have one shape, and can be viewed as images where these have another."""
    mine, predicted, error = (node.meta["val"] for node in (value, forward.start, back.start))
    images = back.images.meta["val"]
    if not (mine.shape == predicted.shape == error.shape and images.shape == forward.images.meta["val"].shape):
        return False
    return mine.shape == images.shape or all(kind.is_contiguous() for kind in (mine, error, images))


# Writing --------------------------------------------------------------------------------------------------------------


def _match(layer: _Layer, pull: Pull) -> Match:
    found, back, forward = layer.convolution, layer.back, layer.forward
    passed = (forward.end, *forward.nodes, back.start, *back.nodes, layer.heart, *pull.nodes)
    read = (layer.value, found.x, found.weight, found.bias, *pull.inputs)

    def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
        kinds = back.images.meta["val"], pull.result.meta["val"]
        named = forward.activation or Activated("identity")
        args = (
            at(found.x),
            at(found.weight),
            if_any(at, found.bias),
            view(graph, at(layer.value), kinds[0]),
            if_any(at, pull.siblings),
            if_any(at, pull.parent_error),
            1.0 if pull.step_size is None else at(pull.step_size),
            named.name,
            named.negative_slope,
            found.form,
            forward.pool.kind,
            forward.pool.window,
            convolution_precision(),
            *(tuple(kind.stride()) for kind in kinds),
        )
        node = call(graph, step_images, args, _KERNEL)
        node.meta["val"] = kinds
        error, given = (item(graph, node, place, kind) for place, kind in enumerate(kinds))
        return [view(graph, error, back.start.meta["val"]), given]

    return Match(_KERNEL, distinct(*passed), (back.start, pull.result), distinct(*read), write)


PATTERN = GroupPattern(frozenset([_aten.convolution_backward.default]), _find)
