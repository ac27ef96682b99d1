"""Recurrent networks by kernels: to PyTorch all layers, directions and time steps of one are one operator.

How an operator is differentiated depends on device and dtype (cuDNN, oneDNN, a loop over time), and so does what it
keeps for its error: no pattern in a flat graph would find them all. So a vertex is traced with the same network written
in the kernels' operators instead. Its products over all time steps are products like others, which patterns take.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from pccompile.backends.choice import is_faster, is_measured, is_on_gpu, objection_to, random_like
from pccompile.backends.patterns.match import argument
from pccompile.backends.recurrence_kinds import KINDS, Kind, Layer, gradients_of
from pccompile.derivatives import LocalFunction
from pccompile.kernels.devices import recurrence_precision
from pccompile.lowering.fragments import Fragment, Leaf, Substitution, Unsupported, fragment_of
from pccompile.lowering.regions import region

if TYPE_CHECKING:
    from pccompile.backends.executables import Compile

__all__ = [
    "joint_graph",
    "network_of",
    "objection_to_network",
    "substitution_for",
]

_aten = torch.ops.aten


def substitution_for(
    function: LocalFunction, kinds: Mapping[Leaf, Any], known: dict[Hashable, Fragment], rest: Compile
) -> Substitution:
    """The kernels for the recurrent networks of a local function, if they can run, and take no longer where it counts.

    Args:
        kinds: a stand-in for each tensor that the function reads.
        known: fragments traced before, to which new ones are added.
        rest: what runs the other operators, where prediction and error are timed both ways.
    """
    networks = [node for node in function.fx_nodes if node.target in _NETWORKS]
    if not networks:
        return Substitution()
    tensors = {node: kinds[name, index] for name, read in function.reads.items() for index, node, _ in read}
    problem = next(filter(None, (_objection_to_node(node, tensors) for node in networks)), "")
    if problem:
        return Substitution(reason=problem)
    functions = {node.target: _NETWORKS[node.target] for node in networks}
    ours = Substitution(functions, "not measured")
    if not is_measured() or not is_on_gpu(kinds.values()):
        return ours
    kernel = joint_graph(fragment_of(function, kinds, None, known, ours))
    operators: fx.Graph | Callable[[], Any]
    try:
        operators = joint_graph(fragment_of(function, kinds, None, known))
    except Unsupported:  # as where cuDNN is called with more than tensors: then the eager back end is in its place
        operators = _by_the_engine(function, kinds)
    taken, reason = is_faster("recurrence", kernel, operators, rest)
    return Substitution(functions if taken else {}, reason)


def _objection_to_node(node: fx.Node, kinds: Mapping[str, Any]) -> str:
    read = [kinds[parent.name] for parent in node.all_input_nodes if parent.name in kinds]
    names = [formal.name for formal in node.target._schema.arguments]  # type: ignore[union-attr]
    return objection_to_network({name: argument(node, name) for name in names}, read)


def objection_to_network(arguments: Mapping[str, Any], read: Sequence[Any]) -> str:
    """Why a network has no kernel; "" if it has one.

    Args:
        arguments: its operator's, by name.
        read: stand-ins for what it reads.
    """
    tensors = [kind for kind in read if isinstance(kind, Tensor)]
    problem = objection_to(tensors, tensors)
    if problem:
        return problem
    layers: int = arguments["num_layers"]
    if arguments["train"] and arguments["dropout"] > 0 and layers > 1:
        return "a network with dropout between its layers has no kernel"
    directions, tensors_each = 1 + arguments["bidirectional"], 2 + 2 * arguments["has_biases"]
    if len(arguments["params"]) != layers * directions * tensors_each:
        return "a network with projections has no kernel"
    return ""


def joint_graph(fragment: Fragment) -> fx.Graph:
    """Prediction and error in one graph."""
    return region([node for node in fragment.graph.nodes if node.op == "call_function"]).graph


def _by_the_engine(function: LocalFunction, kinds: Mapping[Leaf, Any]) -> Callable[[], None]:
    """Prediction and error as the eager back end runs them, on random tensors."""
    parents = [
        tuple(random_like(kinds.get((name, index))) for index in range(width))
        for name, width in function.widths.items()
    ]
    free = [component.free for component in function.vertex.components]

    def call() -> None:
        local = function({}, *parents)
        errors = tuple(part if is_free else None for part, is_free in zip(local.prediction, free, strict=True))
        local.pull_back(errors, tuple(function.targets), True)

    return call


# The networks, as the operators have them -----------------------------------------------------------------------------


Recurrence = Callable[[Tensor, Layer, Sequence[Tensor]], tuple[Tensor, ...]]


def network_of(
    recurrence: Recurrence,
    x: Tensor,
    hx: Tensor | Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    _dropout: float,
    _train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """An operator of ATen's by its recurrence, without projections, and without dropout.

    Args:
        recurrence: a layer in a direction: its outputs (steps, batch, units), and of every kind of state the last.
        x: (steps, batch, inputs), or (batch, steps, inputs) with batch_first.
        hx: of every kind of state the first ones, (layers and directions, batch, units); or those of the only kind.
        params: those of every layer and direction, one after the other.

    Returns:
        The outputs of the last layer, and of every kind of state the last ones of all layers.
    """
    each = 4 if has_biases else 2
    layers = (Layer(*params[start : start + each]) for start in range(0, len(params), each))
    initial = hx if isinstance(hx, list | tuple) else (hx,)
    states = zip(*(state.unbind(0) for state in initial), strict=True)
    reached: list[tuple[Tensor, ...]] = []
    x = x.transpose(0, 1) if batch_first else x
    for _ in range(num_layers):
        outputs = []
        for backwards in (False, True) if bidirectional else (False,):
            output, *last = recurrence(x.flip(0) if backwards else x, next(layers), next(states))
            outputs.append(output.flip(0) if backwards else output)
            reached.append(tuple(last))
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
    x = x.transpose(0, 1) if batch_first else x
    return x, *(torch.stack(state) if len(state) > 1 else state[0][None] for state in zip(*reached, strict=True))


def _layer(kind: Kind, x: Tensor, layer: Layer, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
    bias = layer.recurrent_bias if kind.biases_apart else None
    found: tuple[Tensor, ...] = _Recurrence.apply(kind, kind.drive(x, layer), layer.recurrent, bias, *states)  # type: ignore[no-untyped-call]
    return found


class _Recurrence(torch.autograd.Function):
    """A recurrence's operator and its error, with nothing between them but what a layer needs.

    The operator's own derivative takes the errors of all the states that it returns, which a layer would have to put
    together first; and the product that is dU is a node here, which a pattern may take.
    """

    @staticmethod
    def forward(
        ctx: Any, kind: Kind, drive: Tensor, weight: Tensor, bias: Tensor | None, *states: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.kind, ctx.precision = kind, recurrence_precision()
        found = kind.predict(drive, weight, bias, states, ctx.precision)
        ctx.save_for_backward(weight, *found)
        ctx.set_materialize_grads(False)
        return found[0][1:], *kind.last(found)

    @staticmethod
    def backward(ctx: Any, *errors: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, *found = ctx.saved_tensors
        swept = ctx.kind.error(errors, weight, found, ctx.precision)
        over_time, first = swept[: -ctx.kind.states], swept[-ctx.kind.states :]
        # The error of what hidden states contribute is the drive's where nothing lies between them.
        return None, over_time[0], *gradients_of(over_time[-1], found[0][:-1], *ctx.needs_input_grad[2:4]), *first


_NETWORKS: dict[Any, Callable[..., Any]] = {
    getattr(_aten, name).input: partial(network_of, partial(_layer, kind)) for name, kind in KINDS.items()
}
