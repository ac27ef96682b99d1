"""pointwise: a run of elementwise operators that end in one result, in one generated launch.

It starts at an operator that no other of them takes in, and grows towards what that reads: by operators of the result's
shape that nothing outside the run reads. Numbers that training provides (gains, step sizes) are no inputs of these
kernels.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.calls import At, call, item
from pccompile.backends.patterns.match import Match, Pattern, distinct, only_user
from pccompile.errors import ShapeError, UsageError
from pccompile.kernels.pointwise import pointwise
from pccompile.kernels.pointwise.expressions import EXPRESSIONS
from pccompile.kernels.pointwise.operator import run_pointwise

__all__ = ["PATTERN"]

_aten = torch.ops.aten
_SPELLED: Mapping[Any, Any] = {
    operator.add: _aten.add.Tensor,
    operator.sub: _aten.sub.Tensor,
    operator.mul: _aten.mul.Tensor,
    operator.truediv: _aten.div.Tensor,
    operator.neg: _aten.neg.default,
}
_NAMES = frozenset(name for name in EXPRESSIONS if not name.startswith(("full", "zeros", "ones", "scalar", "fill")))
_HEARTS = frozenset(
    getattr(getattr(_aten, base), overload)
    for base, overload in (name.rsplit(".", 1) for name in _NAMES)
    if overload in getattr(getattr(_aten, base, None), "overloads", list)()
)


def _candidates(root: fx.Node) -> Iterator[Match]:
    reader = only_user(root)
    if not _is_step(root, root) or (reader is not None and _is_step(reader, reader) and _is_step(root, reader)):
        return
    steps = _run(root)
    if len(steps) < 2:
        return
    inputs = distinct(*(n for step in steps for n in step.all_input_nodes if n not in steps))
    graph = _graph(steps, inputs)
    known = pointwise(graph)
    kinds = (node.meta["val"] for node in inputs)
    like = [torch.empty_strided(kind.shape, kind.stride(), dtype=kind.dtype, device="meta") for kind in kinds]
    result = root.meta["val"]
    try:
        plan = known.plan(*like)
    except (UsageError, ShapeError):
        return
    if plan.outputs != ((tuple(result.shape), result.stride(), result.dtype),):
        return

    def write(target: fx.Graph, at: At) -> Sequence[fx.Node]:
        found = call(target, run_pointwise, (known.name, *map(at, inputs)), "pointwise")
        found.meta["val"] = (result,)
        return [item(target, found, 0, result)]

    yield Match("pointwise", tuple(steps), (root,), inputs, write)


def _is_step(node: fx.Node, root: fx.Node) -> bool:
    """Whether a node can be part of a run that ends in a root."""
    value, shape = node.meta.get("val"), root.meta.get("val")
    return (
        node.op == "call_function"
        and (node.target in _SPELLED or node.target in _HEARTS)
        and "chosen" not in node.meta
        and isinstance(value, torch.Tensor)
        and isinstance(shape, torch.Tensor)
        and value.is_floating_point()
        and value.numel() > 0
        and value.shape == shape.shape
        and all(isinstance(n.meta.get("val"), torch.Tensor) for n in node.all_input_nodes)
        and bool(node.all_input_nodes)
    )


def _run(root: fx.Node) -> list[fx.Node]:
    """The nodes of the run that ends in a root, in the order in which they are computed."""
    taken, waiting = {root}, [root]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node not in taken and _is_step(node, root) and node.users.keys() <= taken:
                taken.add(node)
                waiting.append(node)
    return [node for node in root.graph.nodes if node in taken]


def _graph(steps: Sequence[fx.Node], inputs: Sequence[fx.Node]) -> fx.Graph:
    """The run by itself, with names that equal runs share."""
    graph, places = fx.Graph(), {}
    for index, node in enumerate(inputs):
        places[node] = graph.placeholder(f"input_{index}")
    for index, node in enumerate(steps):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)
        places[node] = graph.call_function(_SPELLED.get(node.target, node.target), args, kwargs)
        places[node]._rename(f"step_{index}")
    graph.output((places[steps[-1]],))
    return graph


PATTERN = Pattern("pointwise", "", _HEARTS | frozenset(_SPELLED), _candidates)
