"""Run a captured graph once, node by node, and note what each node is.

Running it is the exact answer to questions that names only hint at: is this operator differentiable, does it draw
random numbers, what is its shape. Nothing remains of the run: the random state is put back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

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
    with torch.random.fork_rng(devices=[device.index for device in devices]), torch.enable_grad():
        for node in captured.graph.nodes:
            if node.op == "output":
                continue
            random = False
            if node.name not in values:
                before = _random_state(devices)
                values[node.name] = _run(captured, node, values, wanted)
                _check_buffers(captured, node, values, leaf_values)
                random = _random_state(devices) != before
            captured.facts[node.name] = _fact(values[node.name], random)
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
