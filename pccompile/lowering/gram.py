"""Loops that carry a child's errors, summed, in the place of a value whose own prediction stays the same.

Strict inference moves the value v of a layer on clamped inputs, which is predicted to be p in every step, by

    v <- v + eta (p - v + g W)

where g W is what its one reader, a linear layer v W^T + b, pulls back. From v = p on this is

    v = p + eta s W,    s <- (1 - eta) s + g,    s = 0 at first

and so the reader's product is v W^T + b = c + eta s G, with c = p W^T + b and the Gram matrix G = W W^T, which are the
same in every step; c is the feed-forward pass's own product. One product of the reader's own width takes the place of
two, and v is computed once, after the loop. In exact arithmetic nothing changes; rounding is another.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pccompile.lowering.symbols import Space, Writer

__all__ = ["DTYPES", "sum_errors"]

_aten = torch.ops.aten
DTYPES = (torch.float32,)  # in half precision the Gram matrix would be rounded; who asks for float64 wants every bit
_STEPS = 10  # of which the loop is expected to take at least as many


@dataclass(frozen=True)
class _Moved:
    """A value that a loop carries, and the nodes of the loop that read and move it.

    Attributes:
        value, prediction, weight, step_size: keys.
        read: v W^T, or v W^T + b.
        pulled: g W.
        error: v - p.
        difference: g W - (v - p).
        after: v + eta (g W - (v - p)).
    """

    value: str
    prediction: str
    weight: str
    step_size: str
    read: fx.Node
    pulled: fx.Node
    error: fx.Node
    difference: fx.Node
    after: fx.Node


def sum_errors(
    space: Space,
    prediction: Writer,
    earlier: Sequence[Writer],
    before: Writer,
    loop: Writer,
    later: Sequence[Writer],
    kept: Collection[str],
) -> None:
    """Rewrite a loop, what fills its places, and what reads them afterwards.

    Args:
        space: of their names.
        prediction: the feed-forward pass.
        earlier: the graphs that run between that and the loop.
        before: runs once before the loop.
        later: the graphs that run after it.
        kept: the keys that somebody else reads, or that change from step to step.
    """
    for key in list(loop.exports):
        if key in kept or key not in loop.imports:
            continue
        moved = _match(key, loop, kept)
        start = None if moved is None else _start(space, moved, earlier, before)
        if moved is not None and start is not None:
            _rewrite(space, moved, start, prediction, before, loop, later)


def _match(key: str, loop: Writer, kept: Collection[str]) -> _Moved | None:
    keys = {node: name for name, node in loop.imports.items()}
    same = {node for node, name in keys.items() if name not in loop.exports and name not in kept}
    exported = list(loop.exports.values())
    value, after = loop.imports[key], loop.exports[key]
    if after.target is not torch.add or after.args[0] is not value or after.users or exported.count(after) > 1:
        return None
    difference, step_size = after.args[1], after.kwargs.get("alpha")
    pulled, error = _operands(difference, operator.sub)
    _, prediction = _operands(error, operator.sub)
    errors, weight = _operands(pulled, _aten.mm.default)
    if not {prediction, weight, step_size} <= same or error.args[0] is not value or not _is_whole(errors):
        return None
    if any(len(node.users) > 1 or node in exported for node in (difference, pulled, error)):
        return None
    readers = [user for user in value.users if user not in (error, after)]
    if len(readers) != 1 or readers[0] in exported or readers[0].kwargs:
        return None
    (read,) = readers
    if read.target not in (_aten.addmm.default, _aten.mm.default) or not set(read.args) - {value} <= same:
        return None
    *bias, factor, transposed = read.args
    if factor is not value or value in bias or transposed.meta.get("transpose_of") != keys[weight]:
        return None
    rows, (wide, narrow) = value.meta["val"].shape[0], weight.meta["val"].shape
    if value.meta["val"].dtype not in DTYPES or not _pays(rows, narrow, wide):
        return None
    return _Moved(key, keys[prediction], keys[weight], keys[step_size], read, pulled, error, difference, after)


def _is_whole(errors: Any) -> bool:
    """Whether sums of them have their layout: derivatives of a sum are one number, expanded."""
    return bool(errors.meta["val"].is_contiguous())


def _operands(node: Any, target: Any) -> tuple[Any, Any]:
    fits = isinstance(node, fx.Node) and node.target is target and len(node.args) == 2 and not node.kwargs
    return tuple(node.args) if fits else (None, None)


def _pays(rows: int, inputs: int, outputs: int) -> bool:
    """Whether steps that are quicker make up for the Gram matrix and for the value afterwards, in multiplications."""
    saved = rows * outputs * (2 * inputs - outputs)
    return _STEPS * saved >= inputs * outputs * (outputs + 2 * rows)


def _start(space: Space, moved: _Moved, earlier: Sequence[Writer], before: Writer) -> fx.Node | None:
    """The sum that the loop starts with, in the graph before it; None where the value starts from something else."""
    copy, error = before.exports[moved.value], moved.pulled.args[0]
    imported = {node: name for name, node in before.imports.items()}
    if copy.target is not torch.clone or copy.args[0] not in imported:
        return None
    source, like = imported[copy.args[0]], error.meta["val"]  # type: ignore[index,union-attr]
    name = f"{moved.value}_errors_start"
    if source == moved.prediction:
        options = {"dtype": like.dtype, "device": like.device}
        return _write(before, name, error, torch.zeros, (tuple(like.shape),), options)
    writer = next((writer for writer in earlier if source in writer.exports), None)
    first = None if writer is None else _pulled_first(writer, writer.exports[source], moved)
    if writer is None or first is None:
        return None
    key = space.unique(f"{moved.value}_error")
    writer.exports[key] = first
    return _write(before, name, error, torch.clone, (before.placeholder(key, like),))


def _pulled_first(writer: Writer, step: fx.Node, moved: _Moved) -> fx.Node | None:
    """g of the first step p + eta g W."""
    keys: dict[Any, str] = {node: name for name, node in writer.imports.items()}
    if step.target is not torch.add or keys.get(step.kwargs.get("alpha")) != moved.step_size:
        return None
    prediction, pulled = step.args
    error, weight = _operands(pulled, _aten.mm.default)
    fits = keys.get(prediction) == moved.prediction and keys.get(weight) == moved.weight
    return error if fits and _is_whole(error) else None


def _predicted(writer: Writer, moved: _Moved, bias: Sequence[str]) -> fx.Node | None:
    """p W^T + b in the feed-forward pass, if that can still give more than it does."""
    value, keys = writer.exports.get(moved.prediction), {node: name for name, node in writer.imports.items()}
    for node in () if value is None or writer.closed else value.users:
        if node.target is moved.read.target and not node.kwargs:
            *added, factor, transposed = node.args
            of_weight = transposed.target is _aten.t.default and keys.get(transposed.args[0]) == moved.weight
            if factor is value and of_weight and [keys.get(part) for part in added] == list(bias):
                return node
    return None


def _rewrite(
    space: Space,
    moved: _Moved,
    start: fx.Node,
    prediction: Writer,
    before: Writer,
    loop: Writer,
    later: Sequence[Writer],
) -> None:
    keys = {node: name for name, node in loop.imports.items()}
    *bias, _, transposed = moved.read.args
    weight, step_size = loop.imports[moved.weight], loop.imports[moved.step_size]

    def outside(node: Any) -> fx.Node:
        own = before.exports.get(keys[node])
        return before.placeholder(keys[node], node.meta["val"]) if own is None else own

    def carried(wish: str, node: fx.Node, writer: Writer = before) -> fx.Node:
        key = space.unique(wish)
        writer.exports[key] = node
        return loop.placeholder(key, node.meta["val"])

    read, after, errors = moved.read, moved.after, f"{moved.value}_errors"
    square = weight.meta["val"].new_empty((weight.meta["val"].shape[0],) * 2)
    factors = outside(weight), outside(transposed)
    gram = _write(before, f"{moved.weight}_gram", read, _aten.mm.default, factors, kind=square)
    total, gram = carried(errors, start), carried(gram.name, gram)
    predicted = _predicted(prediction, moved, [keys[part] for part in bias])
    if predicted is not None:
        constant = carried(f"{read.name}_constant", predicted, prediction)
    else:
        same = tuple(map(outside, (*bias, loop.imports[moved.prediction], transposed)))
        constant = _write(before, f"{read.name}_constant", read, read.target, same)
        constant = carried(constant.name, constant)
    with loop.graph.inserting_before(read):
        product = _write(loop, f"{errors}_back", read, _aten.mm.default, (total, gram))
        drive = _write(loop, read.name, read, torch.add, (constant, product), {"alpha": step_size})
    with loop.graph.inserting_before(after):
        rest = _write(loop, "rest", after, operator.sub, (1, step_size), kind=step_size.meta["val"])
        terms = moved.pulled.args[0], total
        added = _write(loop, f"{errors}_after", after, torch.add, terms, {"alpha": rest}, total.meta["val"])
    moved.read.replace_all_uses_with(drive)
    for node in (moved.after, moved.difference, moved.error, moved.pulled, moved.read):
        loop.graph.erase_node(node)
    del before.exports[moved.value], loop.exports[moved.value]
    summed = str(total.target)
    loop.exports[summed] = added
    for writer in later:
        if moved.value in writer.imports:
            _restore(moved, {key: loop.imports[key].meta["val"] for key in loop.imports}, summed, writer)


def _restore(moved: _Moved, kinds: Mapping[str, Any], summed: str, writer: Writer) -> None:
    """v = p + eta s W."""
    keys = (moved.prediction, summed, moved.weight, moved.step_size)
    prediction, total, weight, step_size = (writer.placeholder(key, kinds[key]) for key in keys)
    value = writer.imports.pop(moved.value)
    first = next(node for node in writer.graph.nodes if node.op != "placeholder")
    with writer.graph.inserting_before(first):
        product = _write(writer, f"{moved.value}_moved", value, _aten.mm.default, (total, weight))
        restored = _write(writer, moved.value, value, torch.add, (prediction, product), {"alpha": step_size})
    value.replace_all_uses_with(restored)
    writer.graph.erase_node(value)


def _write(
    writer: Writer, name: str, origin: Any, target: Any, args: tuple[Any, ...], options: Any = None, kind: Any = None
) -> fx.Node:
    """A node for the purpose of another one, and of its kind unless another is given."""
    node = writer.graph.call_function(target, args, options)
    node._rename(name)
    node.meta = {**origin.meta, "val": origin.meta["val"] if kind is None else kind}
    return node
