"""Run a captured graph once, node by node, and note what each node is.

Running it is the exact answer to questions that names only hint at: is this operator differentiable, does it draw
random numbers, what is its shape. Nothing remains of the run: the random state is put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pccompile.capture.captured import Captured, Fact
from pccompile.errors import CaptureError, PCCompileError, Place
from pccompile.ir.grammar import Kind
from pccompile.nodes import call_node, isolated, misfit

__all__ = ["observe", "place_of"]


def observe(captured: Captured, leaf_values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill `captured.facts` by running every node on detached inputs.

    Args:
        captured: the graph.
        leaf_values: the value of every placeholder and get_attr node, by node name.

    Returns:
        The value of every node.

    Raises:
        ShapeError: a node cannot run on these values.
        CaptureError: a node writes into a buffer that it reads.
    """
    values = {name: _as_leaf(captured.leaves[name].kind, value) for name, value in leaf_values.items()}
    wanted = {name for name, value in leaf_values.items() if isinstance(value, torch.Tensor) and value.requires_grad}
    devices = sorted({v.device for v in values.values() if isinstance(v, torch.Tensor) and v.is_cuda}, key=str)
    counter = _Operations()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device.index for device in devices]))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(counter)
        if not captured.autocast:  # the casts are in the graph
            for device in ("cpu", *(("cuda",) if devices else ())):
                stack.enter_context(torch.autocast(device, enabled=False))
        for node in captured.graph.nodes:
            if node.op == "output":
                continue
            random, operations, moved = False, counter.total, 0
            if node.name not in values:
                before = _random_state(devices)
                values[node.name] = _run(captured, node, values, wanted)
                _check_buffers(captured, node, values, leaf_values)
                random = _random_state(devices) != before
                moved = _bytes(values[node.name], (values[parent.name] for parent in node.all_input_nodes))
            fact = _fact(values[node.name], random)
            captured.facts[node.name] = replace(fact, operations=counter.total - operations, bytes=moved)
            values[node.name] = isolated(values[node.name], like=values[node.name])
    return {name: isolated(value) for name, value in values.items()}


def _as_leaf(kind: Kind, value: Any) -> Any:
    """The value of a placeholder: tracked if it is an input or a parameter that can have a derivative."""
    if not isinstance(value, torch.Tensor):
        return value
    if kind is Kind.BUFFER:
        return value.detach().clone()  # should a node write into it after all
    derivable = value.is_floating_point() or value.is_complex()
    return value.detach().requires_grad_(derivable and kind in (Kind.INPUT, Kind.PARAMETER))


def place_of(captured: Captured, node: str) -> Place:
    """Module path, node and source line of a node, for an error."""
    return Place(captured.modules.get(node, ("", ""))[0] or "(top level)", node, captured.sources.get(node) or None)


def _run(captured: Captured, node: fx.Node, values: Mapping[str, Any], wanted: set[str]) -> Any:
    """The node's value. `wanted` names what a gradient is wanted of, or of something before it; the node may join it.

    Every input that could have a gradient is tracked; where the operator refuses that, those that want one are.
    """
    names = [parent.name for parent in node.all_input_nodes]
    if wanted.intersection(names):
        wanted.add(node.name)
    try:
        try:
            value = call_node(node, {name: isolated(values[name], like=values[name]) for name in names})
        except RuntimeError as error:
            if "is not differentiable with respect to argument" not in str(error):
                raise
            tracked = {name: values[name] if name in wanted else None for name in names}
            value = call_node(node, {name: isolated(values[name], like=tracked[name]) for name in names})
        if node.target is torch.ops.aten._native_batch_norm_legit_functional.default:
            # PyTorch marks the new running statistics as differentiable here; in eager mode they never are
            return (value[0], *(part.detach() for part in value[1:]))
        return value
    except PCCompileError:
        raise
    except Exception as error:
        raise misfit(node, {name: values[name] for name in names}, error, place_of(captured, node.name)) from error


def _check_buffers(
    captured: Captured, node: fx.Node, values: Mapping[str, Any], leaf_values: Mapping[str, Any]
) -> None:
    """Raise if the node has changed (the copy of) a buffer that it read; some operators' schemas do not say so."""
    for parent in node.all_input_nodes:
        leaf = captured.leaves.get(parent.name)
        if leaf is None or leaf.kind is not Kind.BUFFER or leaf_values[parent.name].layout is not torch.strided:
            continue
        if not torch.allclose(values[parent.name], leaf_values[parent.name], rtol=0, atol=0, equal_nan=True):
            raise CaptureError(
                f"{getattr(node.target, '__name__', node.target)} writes into {leaf.path}, which it reads",
                place_of(captured, node.name),
                'use capture="export", which makes such writes explicit, or call it as a module',
            )


def _random_state(devices: list[torch.device]) -> list[bytes]:
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    return [state.numpy().tobytes() for state in states]


def _fact(value: Any, random: bool) -> Fact:
    if not isinstance(value, torch.Tensor):
        tracked = isinstance(value, tuple | list) and any(
            isinstance(v, torch.Tensor) and v.requires_grad for v in value
        )
        return Fact(None, None, tracked, random=random)
    refused = "NotImplemented" in type(value.grad_fn).__name__ if value.grad_fn is not None else False
    dtype = str(value.dtype).removeprefix("torch.")
    return Fact(tuple(value.shape), dtype, value.requires_grad, refused, random)


class _Operations(TorchDispatchMode):
    """Counts operations as `torch.utils.flop_counter` does, by its formulas."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(getattr(func, "_overloadpacket", func))
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def _bytes(value: Any, inputs: Iterable[Any]) -> int:
    """What an operator reads and writes; nothing if its results are views of its inputs."""
    read = [part for part in pytree.tree_leaves(list(inputs)) if isinstance(part, torch.Tensor)]
    written = [part for part in pytree.tree_leaves(value) if isinstance(part, torch.Tensor)]
    if all(any(_shares_memory(result, part) for part in read) for result in written):
        return 0
    return sum(part.numel() * part.element_size() for part in (*read, *written))


def _shares_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    both_have_storage = a.layout == b.layout == torch.strided
    return both_have_storage and bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)
