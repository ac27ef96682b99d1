"""Make an exported program functional: no writes, and no composite operators that torch.export does not keep."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram, exported_program
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.runtime_assert import insert_deferred_runtime_asserts

__all__ = ["functional", "retraced"]

# composite operators that change an argument without saying so in their schema, and that torch.export would keep
_WRITE_UNSAID = {torch.ops.aten.instance_norm.default}
_OF_NUMBERS = {getattr(operator, name) for name in operator.__all__}
_MAY_BE_OPENED = hasattr(exported_program, "_is_preservable_cia_op")


def functional(exported: ExportedProgram) -> ExportedProgram:
    """The program as `run_decompositions({})` makes it, which traces all of it once more.

    A model that writes to nothing needs less: the few operators that are not kept are traced, each alone. That is about
    a third of a capture's time. The given program may be changed.
    """
    if not _MAY_BE_OPENED or any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):  # its casts come with retracing
        return retraced(exported)
    calls = [node for node in exported.graph.nodes if node.op not in ("placeholder", "output")]
    traced: dict[str, fx.Graph] = {}  # by what is called on what; blocks repeat it
    try:
        opened = [(node, _what(node)) for node in calls if not _is_kept(node.target)]
        for node, what in opened:
            traced[what] = traced.get(what) or _traced(node)
        parts = [(node, traced[what]) for node, what in opened]
    except _NotAlone:
        return retraced(exported)
    for node, part in parts:
        _inline(node, part)
    if parts:
        _sizes_of_inputs(exported)
    exported.graph.eliminate_dead_code()
    return exported


def retraced(exported: ExportedProgram) -> ExportedProgram:
    """What `run_decompositions({})` makes of the program."""
    exported.graph_module.recompile()
    with _composites_of(exported.graph_module):
        return exported.run_decompositions({})


class _NotAlone(Exception):
    """An operator writes to a tensor, or is none: what it does shows in the graph as a whole only."""


def _is_kept(target: Any) -> bool:
    """Whether retracing would leave calls of this as they are.

    Raises:
        _NotAlone: it is no operator without effects.
    """
    if target in _OF_NUMBERS:
        return True
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable or target in _WRITE_UNSAID:
        raise _NotAlone(str(target))
    if exported_program._is_preservable_cia_op(target) or target._schema.returns == []:
        return True
    return not _is_composite(target) and torch._C.DispatchKey.Autograd not in target.py_kernels


def _is_composite(target: torch._ops.OpOverload) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return key in target.py_kernels or torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), key)


def _what(node: fx.Node) -> str:
    """What a call computes, of inputs of which kinds."""
    number = {value: position for position, value in enumerate(node.all_input_nodes)}
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda value: f"%{number[value]}")
    kinds = [_kind(value.meta["val"]) for value in number]
    return f"{node.target} {args} {kwargs} {kinds}"


def _kind(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.dtype, value.device, value.shape, value.stride(), value.requires_grad


def _traced(node: fx.Node) -> fx.Graph:
    """What one call does, as a graph with a placeholder for each of its inputs."""
    target: Any = node.target
    operation = target.py_kernels.get(torch._C.DispatchKey.Autograd, target)  # decomposed in Python, where it is
    inputs = node.all_input_nodes
    values = [value.meta["val"] for value in inputs]
    modes = [value.fake_mode for value in values if isinstance(value, FakeTensor)]
    if not modes:
        raise _NotAlone(str(node.target))

    def run(*given: Any) -> Any:
        found = dict(zip(inputs, given, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), found.__getitem__)
        return operation(*args, **kwargs)

    with modes[0], enable_python_dispatcher():
        graph: fx.Graph = make_fx(torch.func.functionalize(run))(*values).graph
    for inner in graph.nodes:
        if inner.op == "get_attr" or (inner.op == "call_function" and not _is_kept(inner.target)):
            raise _NotAlone(str(node.target))
    return graph


def _inline(node: fx.Node, part: fx.Graph) -> None:
    """Put what a call does in its place."""
    given = dict(zip(part.find_nodes(op="placeholder"), node.all_input_nodes, strict=True))
    values = dict(given)
    with node.graph.inserting_before(node):
        results: Any = node.graph.graph_copy(part, values)
    for inner, new in values.items():
        if inner not in given:
            new.meta = {**node.meta, "val": inner.meta["val"]}
    if isinstance(results, fx.Node):
        node.replace_all_uses_with(results)
    else:
        for getter in list(node.users):
            getter.replace_all_uses_with(results[getter.args[1]])
            node.graph.erase_node(getter)
    node.graph.erase_node(node)


def _sizes_of_inputs(exported: ExportedProgram) -> None:
    """Compute open sizes from those of the inputs, each once, as torch.export does; not by asking values for theirs."""
    values = (node.meta.get("val") for node in exported.graph.nodes)
    modes = (value.fake_mode for value in values if isinstance(value, FakeTensor))
    mode = next((mode for mode in modes if mode.shape_env is not None), None)
    if mode is not None:
        insert_deferred_runtime_asserts(exported.graph_module, mode.shape_env, "export", export=True)


@contextmanager
def _composites_of(graph_module: fx.GraphModule) -> Iterator[None]:
    """While this lasts, torch.export prepares to keep the composite operators of this graph, not all of PyTorch's.

    Preparing every one of them takes a second a capture, whatever the size of the model.
    """
    if not hasattr(exported_program, "_collect_all_valid_cia_ops"):
        yield
        return
    graphs = [part.graph for part in graph_module.modules() if isinstance(part, fx.GraphModule)]
    present = {
        node.target for graph in graphs for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)
    }
    kept = {operator for operator in present if exported_program._is_preservable_cia_op(operator)} - _WRITE_UNSAID
    original = exported_program._collect_all_valid_cia_ops
    exported_program._collect_all_valid_cia_ops = lambda: set(kept)
    try:
        yield
    finally:
        exported_program._collect_all_valid_cia_ops = original
