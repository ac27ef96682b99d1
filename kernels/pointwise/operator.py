"""pointwise: a graph of pointwise operators as one kernel, the operator pccompile::pointwise."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter

from pccompile.errors import Place, UsageError
from pccompile.kernels.arguments import check_device, refusal
from pccompile.kernels.operators import custom_operator, has_data
from pccompile.kernels.pointwise.expressions import CASTS, EXPRESSIONS
from pccompile.kernels.pointwise.kernel import launch_pointwise
from pccompile.kernels.pointwise.plan import SUMS, Plan, kind_of, make_plan, output_nodes
from pccompile.kernels.pointwise.source import operator_name

__all__ = ["Pointwise", "pointwise", "run_pointwise", "supports"]


def supports(graph: Graph | GraphModule) -> str | None:
    """The first operator of a graph that a generated kernel does not know; None if it knows them all."""
    graph = graph.graph if isinstance(graph, GraphModule) else graph
    returned = set(output_nodes(graph))
    output = next(node for node in graph.nodes if node.op == "output")
    for node in graph.nodes:
        known = operator_name(node) in EXPRESSIONS or operator_name(node) in CASTS
        final = operator_name(node) in SUMS and node in returned and set(node.users) == {output}
        if node.op == "get_attr" or (node.op.startswith("call_") and not (known or final)):
            return str(node.target)
    return None


class Pointwise:
    """A graph of pointwise ATen operators that runs as one kernel, generated for each kind of inputs."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.key = str(graph)
        self.name = hashlib.sha256(self.key.encode()).hexdigest()[:16]
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def __call__(self, *inputs: Tensor | float) -> tuple[Tensor, ...]:
        """The graph's results, in one launch. Not differentiable.

        Args:
            inputs: the placeholders' tensors, of one device; float32, bfloat16, float16, integers or booleans. Then
                the placeholders' numbers: another number compiles nothing again.

        Raises:
            UsageError: no kernel takes a dtype or the device, or sums are over different dimensions.
            ShapeError: shapes or devices do not fit one another.
        """
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        numbers = [value for value in inputs[len(tensors) :] if not isinstance(value, Tensor)]
        return tuple(torch.ops.pccompile.pointwise(tensors, numbers, self.key))

    def plan(self, *inputs: Tensor | float) -> Plan:
        """How the graph runs on inputs of this kind; `.source` is the kernel."""
        signature = tuple(map(kind_of, inputs))
        if signature not in self._plans:
            self._plans[signature] = make_plan(self.graph, signature)
        return self._plans[signature]


_KNOWN: dict[str, Pointwise] = {}
_BY_NAME: dict[str, Pointwise] = {}


def pointwise(graph: Graph | GraphModule) -> Pointwise:
    """A graph of pointwise operators as one kernel.

    Args:
        graph: placeholders (tensors, then numbers), on them ATen operators (those of
            pccompile.kernels.pointwise.expressions), and an output; what is returned may be summed (aten.sum) over
            dimensions, the same for all sums.

    Raises:
        UsageError: an operator has no Triton expression.
    """
    graph = graph.graph if isinstance(graph, GraphModule) else graph
    unknown = supports(graph)
    if unknown is not None:
        raise UsageError(
            f"no Triton expression for the operator {unknown}",
            Place(node=unknown),
            cure="leave it out of the run of pointwise operators; sums have to be returned as they are",
        )
    known = _KNOWN.setdefault(str(graph), Pointwise(graph))
    return _BY_NAME.setdefault(known.name, known)


def run_pointwise(name: str, first: Tensor, *others: Tensor | float) -> list[Tensor]:
    """A known graph's results without checks and dispatch, for callers that know what they pass.

    Args:
        name: the graph's.
        first, others: its placeholders'. A number that is an operand may come as a tensor of one element.
    """
    return _run(_BY_NAME[name], (first, *others), first.device)


def _run(known: Pointwise, inputs: Sequence[Tensor | float], device: torch.device) -> list[Tensor]:
    plan = known.plan(*inputs)
    outputs = [torch.empty_strided(shape, stride, dtype=dtype, device=device) for shape, stride, dtype in plan.outputs]
    launch_pointwise(plan, inputs, outputs)
    return outputs


def _empty_outputs(known: Pointwise, inputs: Sequence[Tensor | float], device: torch.device) -> list[Tensor]:
    results = Interpreter(torch.nn.Module(), graph=known.graph).run(*inputs)
    results = results if isinstance(results, (tuple, list)) else (results,)
    return [torch.empty_strided(r.shape, r.stride(), dtype=r.dtype, device=device) for r in results]


def _check(inputs: list[Tensor], numbers: list[float], known: Pointwise) -> None:
    expected, given = sum(node.op == "placeholder" for node in known.graph.nodes), len(inputs) + len(numbers)
    if given != expected or not inputs:
        raise UsageError(f"pointwise: {given} inputs", cure=f"the graph has {expected} placeholders, tensors first")
    for index, tensor in enumerate(inputs):
        check_device("pointwise", f"input {index}", tensor, "input 0", inputs[0])


@custom_operator("pccompile::pointwise")
def _pointwise(inputs: list[Tensor], numbers: list[float], graph: str) -> list[Tensor]:
    known = _KNOWN[graph]
    _check(inputs, numbers, known)
    compute = _run if has_data(inputs[0]) else _empty_outputs
    return compute(known, [*inputs, *numbers], inputs[0].device)


_pointwise.register_autograd(refusal("a generated pointwise kernel was differentiated"))
