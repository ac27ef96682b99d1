"""What a graph of pointwise operators computes for inputs of a kind: dtypes and shapes, its sums, and its kernel."""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Interpreter, Node

from pccompile.errors import Place, ShapeError, UsageError
from pccompile.kernels.pointwise.source import DTYPES, Written, operator_name, write_source
from pccompile.kernels.pointwise.space import Space, iteration_space

__all__ = ["SUMS", "Kind", "Plan", "kind_of", "make_plan", "output_nodes", "summed_dimensions"]

SUMS = frozenset({"sum.dim_IntList", "sum.default"})
Kind = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # a tensor's shape, strides and dtype


@dataclass(frozen=True)
class Plan:
    """How a graph is run on inputs of a kind.

    Attributes:
        source: the kernel's source.
        space: what it iterates over; tensors are its inputs that are tensors, then its outputs.
        outputs: the kind of each output.
        sums: for each output, whether it is a sum.
    """

    source: str
    space: Space
    outputs: tuple[Kind, ...]
    sums: tuple[bool, ...]

    @cached_property
    def kernel(self) -> Any:
        """The Triton kernel."""
        return _compiled(self.source)


class _Recorder(Interpreter):
    """Runs a graph on meta tensors and keeps every node's result that is a tensor."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(torch.nn.Module(), graph=graph)
        self.results: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.results[n.name] = result
        return result


def output_nodes(graph: Graph) -> tuple[Node, ...]:
    """The nodes that a graph returns.

    Raises:
        UsageError: it returns something that is no tensor.
    """
    (returned,) = next(node for node in graph.nodes if node.op == "output").args
    nodes = tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)
    if not all(isinstance(node, Node) for node in nodes):
        raise UsageError("pointwise: the graph returns something that is no tensor", cure="return tensors alone")
    return nodes


def kind_of(value: Tensor | float) -> Kind | None:
    """A tensor's kind; None for a number."""
    return (tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else None


def summed_dimensions(node: Node, dimensions: int) -> frozenset[int]:
    """The dimensions of so many that a sum is over."""
    given = list(node.args[1:2]) or [node.kwargs.get("dim")]
    dims: Any = given[0] or range(dimensions)
    return frozenset(d % dimensions for d in dims)


def make_plan(graph: Graph, signature: Sequence[Kind | None]) -> Plan:
    """The plan for inputs of these kinds; None for numbers, which are arguments of the kernel.

    Raises:
        UsageError: an operator or a dtype is not in the table, or sums are over different dimensions.
        ShapeError: shapes do not fit one another, or an output is smaller than what it is computed with.
    """
    recorder = _Recorder(graph)
    recorder.run(*(1.0 if kind is None else _on_meta(*kind) for kind in signature))
    results = {node: recorder.results[node.name] for node in graph.nodes if node.name in recorder.results}
    returned = output_nodes(graph)
    sums = tuple(operator_name(node) in SUMS for node in returned)
    steps = [node for node in graph.nodes if node.op == "call_function" and operator_name(node) not in SUMS]
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    inputs = [node for node in placeholders if node in results]
    numbers = [node for node in placeholders if node not in results]
    for node, result in results.items():
        if result.dtype not in DTYPES:
            raise UsageError(
                f"pointwise: {node.name} is {result.dtype}",
                Place(node=node.name),
                cure="use float32, bfloat16, float16, integers or booleans",
            )
    shape = torch.broadcast_shapes(*(results[node].shape for node in inputs + steps))
    values = tuple(_source(node) if summed else node for node, summed in zip(returned, sums, strict=True))
    reduced = _reduced(returned, values, sums, results, tuple(shape))
    strides = [results[node].expand(shape).stride() for node in inputs]
    for node, summed in zip(returned, sums, strict=True):
        strides.append(_sum_strides(results[node], reduced, len(shape)) if summed else results[node].stride())
    full = [len(inputs) + i for i, summed in enumerate(sums) if not summed]
    full += [i for i, node in enumerate(inputs) if results[node].shape == shape]
    space = iteration_space(shape, reduced, strides, leading=full[0] if full else 0)
    dtypes = {node: result.dtype for node, result in results.items()} | dict.fromkeys(numbers, torch.float32)
    written = Written(tuple(inputs), tuple(numbers), tuple(steps), values, sums, dtypes)
    source = write_source(written, len(space.kept), len(space.reduced))
    outputs = tuple((tuple(results[n].shape), results[n].stride(), results[n].dtype) for n in returned)
    return Plan(source, space, outputs, sums)


def _on_meta(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _source(node: Node) -> Node:
    source = node.args[0]
    assert isinstance(source, Node)
    return source


def _reduced(
    returned: Sequence[Node],
    values: Sequence[Node],
    sums: Sequence[bool],
    results: dict[Node, Tensor],
    shape: tuple[int, ...],
) -> frozenset[int]:
    """The dimensions that all sums are over, after checking that every output spans the whole space."""
    reduced: frozenset[int] | None = None
    for node, value, summed in zip(returned, values, sums, strict=True):
        if tuple(results[value].shape) != shape:
            raise ShapeError(
                f"pointwise: {value.name} has shape {tuple(results[value].shape)}, others are broadcast to {shape}",
                Place(node=value.name),
                cure="give smaller results a kernel of their own",
            )
        if summed:
            dims = summed_dimensions(node, len(shape))
            if reduced is not None and dims != reduced:
                raise UsageError(
                    f"pointwise: sums over the dimensions {sorted(reduced)} and {sorted(dims)}",
                    Place(node=node.name),
                    cure="give each set of dimensions a kernel of its own",
                )
            reduced = dims
    return reduced or frozenset()


def _sum_strides(result: Tensor, reduced: frozenset[int], dimensions: int) -> list[int]:
    """A sum's strides along all dimensions: zero along those it is over."""
    if result.dim() == dimensions:
        return [0 if d in reduced else result.stride(d) for d in range(dimensions)]
    remaining = iter(result.stride())
    return [0 if d in reduced else next(remaining) for d in range(dimensions)]


@cache
def _compiled(source: str) -> Any:
    """The kernel of a source, which Triton reads back: it finds it where Python keeps the lines of files."""
    name = f"<pccompile pointwise {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    module: dict[str, Any] = {"__name__": "pccompile.kernels.pointwise.generated"}
    exec(compile(source, name, "exec"), module)
    return module["pointwise"]
