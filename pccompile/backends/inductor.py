"""Flat graphs compiled by torch's Inductor: fused C++ or Triton kernels, each distinct part compiled once."""

from __future__ import annotations

import copy
import logging
import operator
import shutil
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from pccompile.backends.executables import Executable, as_it_is, python_of
from pccompile.lowering.direct import direct
from pccompile.lowering.expand import FlatPiece
from pccompile.lowering.fragments import fakes
from pccompile.lowering.regions import Region, regions
from pccompile.lowering.symbols import Boxed

__all__ = ["is_available", "with_inductor"]

logger = logging.getLogger("pccompile")

Compiled = Callable[[list[Any]], Any]

_KEPT = 1024
_LEAST_PER_THREAD = 16384  # elements; on two threads PyTorch's own operators share out loops of twice that and more
_LEAST_OF_SLOW = 4096  # where a loop evaluates one of these, as long as ten or twenty additions
_SLOW = {
    getattr(torch.ops.aten, name)
    for name in ("tanh", "sigmoid", "exp", "erf", "gelu", "silu", "softplus", "elu", "mish", "log", "sin", "cos", "pow")
}
_compiled: OrderedDict[str, Compiled] = OrderedDict()  # by signature: blocks of different models may be the same


@cache
def is_available(device: str) -> bool:
    """Whether Inductor has what it needs for a type of device: a C++ compiler, or Triton."""
    if device != "cpu":
        from torch.utils._triton import has_triton

        return bool(has_triton())
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return shutil.which(get_cpp_compiler()) is not None
    except Exception:  # Inductor has its own exception for "none found"
        return False


def with_inductor(piece: FlatPiece) -> Executable:
    """Compile a flat graph; where Inductor fails, a warning says so and the graph runs as it is."""
    graph = _numbers_as_tensors(copy.deepcopy(piece.graph))
    parts = regions(graph)
    try:
        calls = [_as_it_is(part) if part.is_opaque else _with_tensors(part.graph, _compile(part)) for part in parts]
    except Exception as error:  # whatever goes wrong inside Inductor or its compilers, the graph can still run
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        problem = f"{type(error).__name__}: {reason}"
        logger.warning("Inductor cannot compile %s, which runs as it is: %s", piece.name, problem)
        return as_it_is(piece)
    compiled = [part.signature for part in parts if not part.is_opaque]
    code = python_of(fx.GraphModule({}, piece.graph, piece.name), piece.name)
    count = f"{len(compiled)} parts, {len(set(compiled))} distinct"
    return Executable(_chain(graph, parts, calls), f"# compiled by Inductor in {count}\n{code}", "inductor")


def _as_it_is(region: Region) -> Compiled:
    graph = copy.deepcopy(region.graph)
    graph.set_codegen(Boxed())
    direct(graph)
    call: Compiled = fx.GraphModule({}, graph).forward
    return call


def _compile(region: Region) -> Compiled:
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    if region.signature in _compiled:
        _compiled.move_to_end(region.signature)
        return _compiled[region.signature]
    mode = FakeTensorMode(shape_env=ShapeEnv())  # all shapes are known, but Inductor keeps nothing on disk without one
    with mode:
        kinds = [_like(node.meta["val"]) for node in region.graph.find_nodes(op="placeholder")]
    module = fx.GraphModule({}, region.graph)

    def function(*inputs: torch.Tensor) -> Any:
        return module(*inputs)

    functional = torch.func.functionalize(function, remove="mutations")
    with mode, torch.no_grad():
        traced = make_fx(functional, decomposition_table=select_decomp_table())(*kinds)
    traced.graph.output_node().meta["user_visible_output_idxs"] = range(len(region.outputs))  # keep their strides
    on_cpu = _device_of(region.graph).type == "cpu"  # there, operators are called from C++ as well
    slow = any(getattr(node.target, "overloadpacket", None) in _SLOW for node in region.graph.nodes)
    least = _LEAST_OF_SLOW if slow else _LEAST_PER_THREAD
    options = {"fallback_random": True, "cpp.min_chunk_size": least}  # random: the draws that eager PyTorch makes
    with tracing(TracingContext(mode)), torch.no_grad(), torch._inductor.config.patch(options):
        compiled: Any = compile_fx_inner(traced, kinds, cpp_wrapper=on_cpu)
    _compiled[region.signature] = compiled
    if len(_compiled) > _KEPT:
        _compiled.popitem(last=False)
    return compiled  # type: ignore[no-any-return]


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _chain(graph: fx.Graph, parts: list[Region], calls: list[Compiled]) -> Compiled:
    """Runs the parts one after another; each value is let go after the last part that reads it."""
    placeholders = tuple(graph.find_nodes(op="placeholder"))
    results: Any = graph.output_node().args[0]
    if len(parts) == 1 and parts[0].inputs == placeholders and parts[0].outputs == tuple(results):
        return calls[0]
    last: dict[fx.Node, int] = {node: index for index, part in enumerate(parts) for node in part.inputs}
    last |= dict.fromkeys((node for node in results if isinstance(node, fx.Node)), len(parts))
    frees = [[node for node in part.inputs if last[node] == index] for index, part in enumerate(parts)]

    def run(inputs: list[Any]) -> Any:
        values = dict(zip(placeholders, inputs, strict=True))
        inputs.clear()
        for part, call, free in zip(parts, calls, frees, strict=True):
            given = [values[node] for node in part.inputs]
            for node in free:
                del values[node]
            values.update(zip(part.outputs, call(given), strict=True))
        return tuple(values[node] if isinstance(node, fx.Node) else node for node in results)

    return run


# Numbers --------------------------------------------------------------------------------------------------------------


def _numbers_as_tensors(graph: fx.Graph) -> fx.Graph:
    """Numbers that a run provides become tensors: Inductor would compile them in."""
    device = _device_of(graph)
    for node in graph.find_nodes(op="placeholder"):
        if not isinstance(node.meta["val"], torch.Tensor):
            with fakes():
                node.meta["val"] = torch.empty((), dtype=torch.float64, device=device)
            node.meta["number"] = True
    for node in list(graph.nodes):
        with graph.inserting_before(node):
            if node.target is int:
                node.target, node.args = torch.full, ((), float(node.args[0]))
                node.kwargs = {"dtype": torch.float64, "device": device}
            elif node.target is torch.add and isinstance(node.kwargs.get("alpha"), fx.Node):
                scaled = graph.call_function(operator.mul, (node.kwargs["alpha"], node.args[1]))
                scaled.meta = dict(node.meta)
                node.args, node.kwargs = (node.args[0], scaled), {}
            elif node.target is torch.lerp and isinstance(node.args[2], fx.Node):
                before, after, weight = node.args
                moved = graph.call_function(operator.sub, (after, before))
                scaled = graph.call_function(operator.mul, (weight, moved))
                moved.meta, scaled.meta = dict(node.meta), dict(node.meta)
                node.target, node.args = operator.add, (before, scaled)
    return graph


def _with_tensors(graph: fx.Graph, call: Compiled) -> Compiled:
    """Takes numbers where the graph takes tensors for them."""
    placeholders = graph.find_nodes(op="placeholder")
    numbers = [index for index, node in enumerate(placeholders) if node.meta.get("number")]
    if not numbers:
        return call
    device = _device_of(graph)

    def run(inputs: list[Any]) -> Any:
        for index in numbers:
            value = inputs[index]
            is_tensor = isinstance(value, torch.Tensor)
            inputs[index] = value.to(device, torch.float64) if is_tensor else _number(value, device)
        return call(inputs)

    return run


@lru_cache(maxsize=256)
def _number(value: float, device: torch.device) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, device=device)


def _device_of(graph: fx.Graph) -> torch.device:
    kinds = (node.meta.get("val") for node in graph.nodes)
    return next((kind.device for kind in kinds if isinstance(kind, torch.Tensor)), torch.device("cpu"))
