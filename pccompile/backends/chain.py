"""Which programs are chains of linear layers: strict inference of those is one launch (kernels/strict_sweep).

A chain is found on the optimised program. Every vertex that moves is a linear layer with an activation and is read by
the next one alone, up to the loss vertex, which is cross-entropy or the squared error, perhaps times a number.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from pccompile.backends.patterns.activations import Activated, activated
from pccompile.backends.patterns.match import argument
from pccompile.derivatives import LocalFunction
from pccompile.ir.grammar import Kind, Program, Vertex

__all__ = ["ChainLoss", "Input", "Layer", "LinearChain", "NoChain", "chain_of"]

_aten = torch.ops.aten
_MEAN = 1
_BROADCAST = ("broadcast_tensors", "getitem")


class NoChain(Exception):
    """The program is no chain; the message says why."""


@dataclass(frozen=True)
class Layer:
    """A vertex that act(x W^T + b) predicts: its name, those of its weight and bias, and its activation."""

    name: str
    weight: str
    bias: str | None
    activation: Activated


@dataclass(frozen=True)
class Input:
    """The x of a layer, (batch, in).

    Attributes:
        node: the FX node that it is.
        before: the nodes to evaluate for it, such as flattening images.
        reads: the FX nodes that these read, or `node` itself: each as (node, vertex, component of its value).
    """

    node: str
    before: tuple[fx.Node, ...]
    reads: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class ChainLoss:
    """The loss vertex.

    Attributes:
        kind: which loss.
        target: the vertex that the output is compared with.
        mean: over the samples, and for the squared error over the outputs; else the sum.
        factor: a number that multiplies it.
        ignore_index: the class whose samples have no loss.
    """

    kind: Literal["cross_entropy", "squared_error"]
    target: str
    mean: bool
    factor: float = 1.0
    ignore_index: int = -100


@dataclass(frozen=True)
class LinearChain:
    """A chain of linear layers.

    Attributes:
        input: of the first layer; clamped.
        layers: in feed-forward order.
        loss: of the last layer.
        free_output: the last layer has a free value, which the loss reads; else the loss reads its prediction.
    """

    input: Input
    layers: tuple[Layer, ...]
    loss: ChainLoss
    free_output: bool

    @property
    def negative_slope(self) -> float:
        """The slope of leaky_relu, which all layers share."""
        found = [layer.activation.negative_slope for layer in self.layers if layer.activation.name == "leaky_relu"]
        return found[0] if found else 0.01


def chain_of(program: Program, functions: Mapping[str, LocalFunction]) -> LinearChain:
    """The chain that a program is.

    Args:
        program: the optimised program.
        functions: the local function of every predicted vertex.

    Raises:
        NoChain: it is none.
    """
    loss, output = _ends(program)
    free_output = not output.nodes
    layers: list[Layer] = []
    below = program.parents(output.name)[0] if free_output else output
    while not below.clamped:
        layer, source = _layer(program, functions[below.name])
        layers.insert(0, layer)
        read = [program.vertex(name) for _, name, _ in source.reads]
        moving = [vertex for vertex in read if not vertex.clamped]
        if moving and (source.before or len(read) > 1):
            raise NoChain(f"layer {layer.name} starts with {_called(source.before[0])}")
        below = (moving or read)[0]
    wanted = [vertex.name for vertex in read if vertex.requires_grad]
    if wanted:
        raise NoChain(f"the gradient of {wanted[0]} is wanted")
    _check_nothing_else_moves(program, {layer.name for layer in layers} | {output.name})
    slopes = {layer.activation.negative_slope for layer in layers if layer.activation.name == "leaky_relu"}
    if len(slopes) > 1:
        raise NoChain("leaky_relu has several slopes")
    return LinearChain(source, tuple(layers), _loss(program, functions[loss.name], output), free_output)


def _ends(program: Program) -> tuple[Vertex, Vertex]:
    """The loss vertex and the output vertex."""
    loss = next((vertex for vertex in program.vertices if vertex.kind is Kind.LOSS and vertex.nodes), None)
    if loss is None:
        raise NoChain("the loss is outside the program")
    if program.learned(loss.name):
        raise NoChain("the loss has parameters")
    outputs = [parent for parent in program.parents(loss.name) if not parent.clamped]
    if len(outputs) != 1:
        raise NoChain(f"the loss reads {len(outputs)} outputs")
    if not any(vertex.moves for vertex in program.vertices):
        raise NoChain("no layer has a free value")
    return loss, outputs[0]


def _check_nothing_else_moves(program: Program, chain: set[str]) -> None:
    for vertex in program.vertices:
        if vertex.has_error and vertex.name not in chain:
            raise NoChain(f"{vertex.name} is beside the chain")
        readers = [child.name for child in program.children(vertex.name) if not child.clamped]
        if vertex.moves and len(readers) > 1:
            raise NoChain(f"layer {vertex.name} is read by {' and '.join(readers)}")


# Layers ---------------------------------------------------------------------------------------------------------------


def _layer(program: Program, function: LocalFunction) -> tuple[Layer, Input]:
    """The layer that a vertex is, and what it reads."""
    vertex, nodes = function.vertex, function.fx_nodes
    place = next((place for place, node in enumerate(nodes) if node.target is _aten.linear.default), None)
    if function.random:
        raise NoChain(f"layer {vertex.name} draws random numbers")
    if place is None:
        raise NoChain(f"layer {vertex.name} is {_called(nodes[0])}")
    before, linear, rest = nodes[:place], nodes[place], nodes[place + 1 :]
    activation = Activated("identity")
    for node in rest:
        found = activated(node)
        if found is None or activation.name != "identity" or node.args[0] is not linear:
            raise NoChain(f"layer {vertex.name} ends with {_called(node)}")
        activation = found
    if len(vertex.components) != 1 or len(vertex.components[0].shape) != 2:
        raise NoChain(f"the value of layer {vertex.name} is no matrix of a batch")
    weight, bias = (_owner(function, argument(linear, name)) for name in ("weight", "bias"))
    computed = [name for name in (weight, bias) if name is not None and not _is_leaf(program.vertex(name))]
    if weight is None or computed or (bias is None and argument(linear, "bias") is not None):
        raise NoChain(f"a parameter of layer {vertex.name} is computed")
    return Layer(vertex.name, weight, bias, activation), _input(function, argument(linear, "input"), before)


def _is_leaf(vertex: Vertex) -> bool:
    return vertex.clamped and not vertex.nodes


def _input(function: LocalFunction, x: fx.Node, before: tuple[fx.Node, ...]) -> Input:
    """What a layer reads, through what comes before its product."""
    given = {name: (parent, index) for parent, read in function.reads.items() for index, name, _ in read}
    nodes = dict.fromkeys([x, *(node for step in before for node in step.all_input_nodes)])
    outside = [node.name for node in nodes if node not in before]
    if before and x is not before[-1]:
        raise NoChain(f"layer {function.vertex.name} starts with {_called(before[0])}")
    return Input(x.name, before, tuple((name, *given[name]) for name in outside))


def _owner(function: LocalFunction, node: fx.Node | None) -> str | None:
    """The parent that a node is a component of."""
    if node is None:
        return None
    return next((parent for parent, read in function.reads.items() if node.name in [name for _, name, _ in read]), None)


def _called(node: fx.Node) -> str:
    """What a node does, in words."""
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    return "a convolution" if "conv" in name else name


# The loss -------------------------------------------------------------------------------------------------------------


def _loss(program: Program, function: LocalFunction, output: Vertex) -> ChainLoss:
    *broadcast, last = _without_factors(function)
    core, factor = last
    names = [_called(node) for node, _ in (*broadcast, last)]
    same = _broadcast(function)
    if core.target not in (_aten.cross_entropy_loss.default, _aten.mse_loss.default) or not all(
        node.name in same or node.target is _aten.broadcast_tensors.default for node, _ in broadcast
    ):
        raise NoChain(f"the loss is {', '.join(name for name in names if name not in _BROADCAST)}")
    scores, compared = (same.get(node.name, node) for node in (argument(core, "self"), argument(core, "target")))
    target = _owner(function, compared)
    if _owner(function, scores) != output.name or target is None or not program.vertex(target).clamped:
        raise NoChain("the loss does not compare the output with a target")
    mean = argument(core, "reduction") == _MEAN
    if core.target is _aten.mse_loss.default:
        return ChainLoss("squared_error", target, mean, factor)
    if argument(core, "weight") is not None:
        raise NoChain("the loss has weights of classes")
    if argument(core, "label_smoothing") != 0:
        raise NoChain("the loss smooths its labels")
    component = next(part for part in program.vertex(target).components if part.node == compared.name)
    if len(component.shape) != 1 or component.dtype != "int64":
        raise NoChain("the loss's targets are no classes")
    return ChainLoss("cross_entropy", target, mean, factor, argument(core, "ignore_index"))


def _without_factors(function: LocalFunction) -> list[tuple[fx.Node, float]]:
    """The nodes of a loss without products with numbers at its end, and with the last one what these make."""
    nodes, factor = list(function.fx_nodes), 1.0
    while len(nodes) > 1 and nodes[-1].target in (_aten.mul.Tensor, _aten.div.Tensor):
        scaled, number = nodes[-1].args
        if scaled is not nodes[-2] or not isinstance(number, int | float):
            break
        factor = factor * number if nodes[-1].target is _aten.mul.Tensor else factor / number
        nodes.pop()
    return [(node, factor) for node in nodes]


def _broadcast(function: LocalFunction) -> dict[str, fx.Node]:
    """What broadcasting hands on, by the node that stands for it; shapes that differ are seen to where it runs."""
    found: dict[str, fx.Node] = {}
    for node in function.fx_nodes:
        if node.target is operator.getitem and node.args[0].target is _aten.broadcast_tensors.default:  # type: ignore[union-attr]
            found[node.name] = node.args[0].args[0][node.args[1]]  # type: ignore[union-attr, index]
    return found
