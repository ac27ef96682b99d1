"""pointwise: a run of elementwise operators, with the sums of its errors, in one generated launch.

A run grows from an operator to what that reads, to what reads it, and to what else reads its inputs: operators of one
shape, smaller ones that they alone read, and sums. What others read of it are its results. It stops where the launch
would have no place: all that it reads has to be there before the first of the others reads what it gives.

The launch sums over the dimensions that all its sums are over, which one of them has for its own; an operator goes on
with the rest, in float32. Gains move into sums: `gain * sum(e)` is computed as `sum(gain * e)`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.calls import At, call, item, view
from pccompile.backends.patterns.match import VIEWS, Match, Pattern, distinct, only_user
from pccompile.errors import ShapeError, UsageError
from pccompile.kernels.pointwise import pointwise
from pccompile.kernels.pointwise.expressions import EXPRESSIONS
from pccompile.kernels.pointwise.operator import Pointwise, run_pointwise
from pccompile.kernels.pointwise.plan import SUMS, Kind, kind_of, summed_dimensions
from pccompile.kernels.pointwise.source import DTYPES
from pccompile.lowering.fragments import is_write

__all__ = ["PATTERN"]

# Bounds of what a program holds at a time; not measured.
_MOST_STEPS = 64
_MOST_TENSORS = 16  # read and written

_aten = torch.ops.aten
_SPELLED: Mapping[Any, Any] = {
    operator.add: _aten.add.Tensor,
    operator.sub: _aten.sub.Tensor,
    operator.mul: _aten.mul.Tensor,
    operator.truediv: _aten.div.Tensor,
    operator.neg: _aten.neg.default,
    torch.add: _aten.add.Tensor,
    torch.sub: _aten.sub.Tensor,
}


def _overloads(names: Sequence[str], suffix: str = "") -> dict[Any, str]:
    """The ATen operators of these names, those that exist."""
    split = {name: name.rsplit(".", 1) for name in names}
    packets = {name: (getattr(_aten, base + suffix, None), overload) for name, (base, overload) in split.items()}
    return {
        getattr(packet, overload): name
        for name, (packet, overload) in packets.items()
        if packet is not None and overload in packet.overloads()
    }


_CONSTANTS = frozenset({_aten.scalar_tensor.default})
_MAKERS = ("full", "zeros", "ones", "scalar", "fill")
_NAMES = [name for name in EXPRESSIONS if not name.startswith(_MAKERS)] + ["_to_copy.default", "clone.default"]
_OPERATORS = _overloads(_NAMES)
_BY_NAME = {name: target for target, name in _OPERATORS.items()}
_IN_PLACE = {target: _BY_NAME[name] for target, name in _overloads(_NAMES, "_").items()}
_KNOWN: dict[str, bool] = {}
_SUMS = frozenset(_overloads(sorted(SUMS)))


def _candidates(heart: fx.Node) -> Iterator[Match]:
    if not _is_step(heart):
        return
    run = _run(heart)
    results = _results(run)
    if len(run) < 2 or not results or _belongs_to_larger(heart, results):
        return
    steps = sorted(run)
    inputs = _inputs(steps)
    planned = _planned(steps, inputs, results)
    if planned is None:
        return
    known, outputs = planned
    like = heart.meta["val"]
    kinds = tuple(like.new_empty_strided(shape, stride, dtype=dtype) for shape, stride, dtype in outputs)

    def write(target: fx.Graph, at: At) -> Sequence[fx.Node]:
        found = call(target, run_pointwise, (known.name, *map(at, inputs)), "pointwise")
        found.meta["val"] = kinds
        items = [item(target, found, index, kind) for index, kind in enumerate(kinds)]
        return [_finished(target, each, node) for each, node in zip(items, results, strict=True)]

    replaced = tuple(part for step in steps for part in (step, *_tail(step)))
    tensors = [node for node in inputs if not _is_number(node)]
    wide = tuple(node for node in tensors if node.meta["val"].dtype is torch.float32)
    yield Match("pointwise", replaced, tuple(map(_last, results)), inputs, write, statistics=wide)


# Steps ----------------------------------------------------------------------------------------------------------------


def _is_number(node: fx.Node) -> bool:
    """Whether a node is a number that the run provides; one that is computed may be a tensor in its turn."""
    value = node.meta.get("val")
    return node.op == "placeholder" and isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_step(node: fx.Node) -> bool:
    """Whether a node is an elementwise operator that a generated kernel knows, or a number as a tensor."""
    value = node.meta.get("val")
    if node.op != "call_function" or "chosen" in node.meta or not isinstance(value, torch.Tensor):
        return False
    if node.target in _CONSTANTS:
        return True
    reads = [read.meta.get("val") for read in node.all_input_nodes if not _is_number(read)]
    return (
        (node.target in _SPELLED or (len(reads) == len(node.all_input_nodes) and _functional(node.target) is not None))
        and value.numel() > 0
        and bool(reads)
        and all(isinstance(read, torch.Tensor) and read.device == value.device for read in reads)
        and _is_known(node)
    )


def _is_known(node: fx.Node) -> bool:
    """Whether a kernel gives just what an operator gives; asked once for each kind of call."""
    reads = fx.node.map_arg((node.args, node.kwargs), lambda read: kind_of(read.meta["val"]))  # type: ignore[arg-type]
    described = str((node.target, reads, kind_of(node.meta["val"])))
    if described not in _KNOWN:
        _KNOWN[described] = _planned([node], _inputs([node]), [node]) is not None
    return _KNOWN[described]


def _functional(target: Any) -> Any:
    """The ATen operator that computes the same and writes into nothing; None for those that no kernel knows."""
    return _SPELLED.get(target) or _IN_PLACE.get(target) or (target if target in _OPERATORS else None)


def _is_sum(node: fx.Node) -> bool:
    """Whether a node is a sum that may go with a run."""
    if node.target not in _SUMS or "chosen" in node.meta:
        return False
    dtype = node.meta["val"].dtype
    return dtype.is_floating_point and dtype in DTYPES and _summed(node).meta["val"].dim() > 0


def _summed(node: fx.Node) -> fx.Node:
    """What a sum adds up."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _tail(node: fx.Node) -> list[fx.Node]:
    """What alone reads a sum, one after the other: views, and gains that are multiplied with it."""
    tail: list[fx.Node] = []
    reader = only_user(node) if _is_sum(node) else None
    while reader is not None and (reader.target in VIEWS or _gain(reader) is not None):
        tail.append(reader)
        reader = only_user(reader)
    return tail


def _gain(node: fx.Node) -> fx.Node | None:
    """The number of a product with a tensor."""
    if node.target is not operator.mul or not isinstance(node.args[0], fx.Node) or not _is_number(node.args[0]):
        return None
    return node.args[0]


def _last(node: fx.Node) -> fx.Node:
    """The node that stands for a step, or for a sum with its tail."""
    return (node, *_tail(node))[-1]


def _dimensions(node: fx.Node) -> frozenset[int]:
    """What a sum is over."""
    dimensions: frozenset[int] = summed_dimensions(node, _summed(node).meta["val"].dim())
    return dimensions


def _shared_dimensions(steps: Iterable[fx.Node]) -> frozenset[int]:
    """What all sums among the steps are over."""
    over = [_dimensions(node) for node in steps if _is_sum(node)]
    return over[0].intersection(*over) if over else frozenset()


def _finished(graph: fx.Graph, node: fx.Node, stands_for: fx.Node) -> fx.Node:
    """What the kernel gives for a step or sum, summed over what is left of the dimensions, in its last shape."""
    kind = stands_for.meta["val"]
    if kind_of(node.meta["val"]) != kind_of(kind):
        arguments = sorted(_dimensions(stands_for)), node.meta["val"].dim() == kind.dim()
        node = graph.call_function(_aten.sum.dim_IntList, (node, *arguments), {"dtype": kind.dtype})
        node.meta["val"] = kind
    return view(graph, node, _last(stands_for).meta["val"])


# Runs -----------------------------------------------------------------------------------------------------------------


def _run(heart: fx.Node) -> frozenset[fx.Node]:
    """The steps and sums of the run around a step."""
    run, waiting = frozenset({heart}), [heart]
    while waiting:
        for node in _neighbours(waiting.pop(), heart.meta["val"].shape):
            grown = run if node in run else _grown(run, node, heart.meta["val"].shape)
            waiting += sorted(grown - run)
            run = grown
    return run


def _neighbours(node: fx.Node, shape: torch.Size) -> Iterator[fx.Node]:
    """Steps and sums that a run over a shape may take in beside one of its nodes."""
    inputs = node.all_input_nodes
    yield from filter(_is_step, inputs)
    for shared in filter(lambda read: _spans(read, shape), inputs if _is_sum(node) else (node, *inputs)):
        yield from (user for user in shared.users if _is_sum(user) or (_spans(user, shape) and _is_step(user)))


def _spans(node: fx.Node, shape: torch.Size) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.shape == shape


def _grown(run: frozenset[fx.Node], node: fx.Node, shape: torch.Size) -> frozenset[fx.Node]:
    """The run with a node, and with the steps that have to come along; the run as it was if that cannot be."""
    grown = run | {node}
    while not _has_a_place(grown):
        latest = max(_inputs(sorted(grown)), default=node)
        if latest in grown or not _is_step(latest):
            return run
        grown |= {latest}
    return grown if _fits(grown, shape) else run


def _has_a_place(run: frozenset[fx.Node]) -> bool:
    """Whether a launch can stand after all that it reads, and before all that read its results."""
    nodes = {part for node in run for part in (node, *_tail(node))}
    readers = [user for node in nodes for user in node.users if user not in nodes]
    return not readers or max(_inputs(sorted(run)), default=min(readers)) < min(readers)


def _fits(run: frozenset[fx.Node], shape: torch.Size) -> bool:
    """Whether one kernel over a shape can compute a run."""
    results, inputs, sums = _results(run), _inputs(sorted(run)), list(filter(_is_sum, run))
    written_into = (node.all_input_nodes[0] for node in run if node.target in _IN_PLACE)
    return (
        all(node in sums or _spans(node, shape) for node in results)
        and all(_spans(_summed(node), shape) for node in sums)
        and run.isdisjoint(user for node in sums for user in _last(node).users)
        and (not sums or _shared_dimensions(sums) in map(_dimensions, sums))
        and all(node in run and len(node.users) == 1 for node in written_into)
        and not any(is_write(user) for read in inputs for user in read.users if user not in run)
        and len(run) <= _MOST_STEPS
        and not all(map(_is_number, inputs))
        and len(inputs) + len(results) <= _MOST_TENSORS
    )


def _results(run: frozenset[fx.Node]) -> list[fx.Node]:
    """The steps and sums of a run that are read outside."""
    return [node for node in sorted(run) if any(user not in run for user in _last(node).users)]


def _inputs(steps: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    """What a run reads: tensors, then numbers."""
    nodes = [part for step in steps for part in (step, *_tail(step))]
    read = distinct(*(n for node in nodes for n in node.all_input_nodes if n not in nodes))
    return tuple(sorted(read, key=_is_number))


def _belongs_to_larger(heart: fx.Node, results: Sequence[fx.Node]) -> bool:
    """Whether only steps of a larger shape read a run: they take it in."""
    size = heart.meta["val"].numel()
    readers = [user for node in results for user in node.users]
    return all(_is_step(user) and user.meta["val"].numel() > size for user in readers)


# Kernels --------------------------------------------------------------------------------------------------------------


def _planned(
    steps: Sequence[fx.Node], inputs: Sequence[fx.Node], results: Sequence[fx.Node]
) -> tuple[Pointwise, tuple[Kind, ...]] | None:
    """The kernel of a run, and what it gives; None if that is not what the operators give."""
    known = pointwise(_graph(steps, inputs, results))
    try:
        plan = known.plan(*(node.meta["val"] for node in inputs))
    except (UsageError, ShapeError):
        return None
    shared = _shared_dimensions(steps)
    for node, kind in zip(results, plan.outputs, strict=True):
        is_partial = _is_sum(node) and _dimensions(node) != shared
        if not is_partial and kind != kind_of(node.meta["val"]):
            return None
    return known, plan.outputs


def _graph(steps: Sequence[fx.Node], inputs: Sequence[fx.Node], results: Sequence[fx.Node]) -> fx.Graph:
    """The run by itself, with names that equal runs share."""
    graph, places, shared = fx.Graph(), {}, _shared_dimensions(steps)
    for index, node in enumerate(inputs):
        places[node] = graph.placeholder(f"{'number' if _is_number(node) else 'input'}_{index}")
    for index, node in enumerate(steps):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)
        kwargs = {name: value for name, value in kwargs.items() if name != "device"}
        target = _functional(node.target) or node.target
        if _is_sum(node):
            for gain in filter(None, map(_gain, _tail(node))):
                args = (graph.call_function(_aten.mul.Tensor, (args[0], places[gain])), *args[1:])
            if _dimensions(node) != shared:
                target, kwargs = _aten.sum.dim_IntList, {"dtype": torch.float32}
                args = (args[0], sorted(shared), True)
        places[node] = graph.call_function(target, args, kwargs)
        places[node]._rename(f"step_{index}")
    graph.output(tuple(places[node] for node in results))
    return graph


PATTERN = Pattern("pointwise", "", frozenset(_OPERATORS) | frozenset(_SPELLED), _candidates)
