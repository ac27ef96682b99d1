"""Which programs are chains of layers: strict inference of those is one launch (kernels/strict_sweep of linear layers,
kernels/network_sweep where there are convolutions).

A chain is found on the optimised program. Every vertex that moves is a linear layer or a convolution with what follows
it (chain_layers.py) and is read by the next one alone, up to the loss vertex, which is cross-entropy or the squared
error, perhaps times a number.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from pccompile.backends.chain_layers import Input, Layer, NoChain, called, layer_of, owner
from pccompile.backends.patterns.convolutions import NO_POOL
from pccompile.backends.patterns.match import argument
from pccompile.derivatives import LocalFunction
from pccompile.ir.grammar import Kind, Program, Vertex

__all__ = ["ChainLoss", "LayerChain", "NoChain", "chain_of"]

_aten = torch.ops.aten
_MEAN = 1
_BROADCAST = ("broadcast_tensors", "getitem")


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
class LayerChain:
    """A chain of layers.

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
    def linear(self) -> bool:
        """Whether there is no convolution."""
        return all(layer.convolution is None for layer in self.layers)

    @property
    def negative_slope(self) -> float:
        """The slope of leaky_relu, which all layers share."""
        found = [layer.activation.negative_slope for layer in self.layers if layer.activation.name == "leaky_relu"]
        return found[0] if found else 0.01


def chain_of(program: Program, functions: Mapping[str, LocalFunction]) -> LayerChain:
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
        layer, source = layer_of(program, functions[below.name])
        layers.insert(0, layer)
        read = [program.vertex(name) for _, name, _ in source.reads]
        moving = [vertex for vertex in read if not vertex.clamped]
        if moving and (source.before or len(read) > 1):
            raise NoChain(f"layer {layer.name} starts with {called(source.before[0])}")
        below = (moving or read)[0]
    wanted = [vertex.name for vertex in read if vertex.requires_grad]
    if wanted:
        raise NoChain(f"the gradient of {wanted[0]} is wanted")
    _check_nothing_else_moves(program, {layer.name for layer in layers} | {output.name})
    pool = layers[-1].convolution.pool if layers[-1].convolution else NO_POOL
    if not free_output and pool != NO_POOL:
        raise NoChain(f"the output {layers[-1].name} pools")
    slopes = {layer.activation.negative_slope for layer in layers if layer.activation.name == "leaky_relu"}
    if len(slopes) > 1:
        raise NoChain("leaky_relu has several slopes")
    return LayerChain(source, tuple(layers), _loss(program, functions[loss.name], output), free_output)


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


# The loss -------------------------------------------------------------------------------------------------------------


def _loss(program: Program, function: LocalFunction, output: Vertex) -> ChainLoss:
    *broadcast, last = _without_factors(function)
    core, factor = last
    names = [called(node) for node, _ in (*broadcast, last)]
    same = _broadcast(function)
    if core.target not in (_aten.cross_entropy_loss.default, _aten.mse_loss.default) or not all(
        node.name in same or node.target is _aten.broadcast_tensors.default for node, _ in broadcast
    ):
        raise NoChain(f"the loss is {', '.join(name for name in names if name not in _BROADCAST)}")
    scores, compared = (same.get(node.name, node) for node in (argument(core, "self"), argument(core, "target")))
    target = owner(function, compared)
    if owner(function, scores) != output.name or target is None or not program.vertex(target).clamped:
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
