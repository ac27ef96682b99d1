"""Which vertices are layers of a chain: linear, or a convolution with the pooling behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from pccompile.backends.patterns.activations import IDENTITY, Activated, activated
from pccompile.backends.patterns.convolutions import NO_POOL, Pooling
from pccompile.backends.patterns.match import argument
from pccompile.derivatives import LocalFunction
from pccompile.ir.grammar import Program, Vertex
from pccompile.kernels.convolution_geometry import LARGEST_WINDOW, Form

__all__ = ["Convolution", "Input", "Layer", "NoChain", "called", "layer_of", "owner"]

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.conv2d.default, _aten.conv2d.padding)
_POOLINGS = {_aten.max_pool2d.default: "max", _aten.avg_pool2d.default: "average"}
_RESHAPES = (_aten.reshape.default, _aten.view.default, _aten.flatten.using_ints)


class NoChain(Exception):
    """The program is no chain; the message says why."""


@dataclass(frozen=True)
class Convolution:
    """What a convolution is beside its parameters: its stride, padding, dilation and groups, and its pooling."""

    form: Form
    pool: Pooling


@dataclass(frozen=True)
class Layer:
    """A vertex that act(x W^T + b) or pool(act(x * W + b)) predicts.

    Attributes:
        name: the vertex's.
        weight, bias: the names of its parameters.
        activation: act.
        convolution: where it is one.
    """

    name: str
    weight: str
    bias: str | None
    activation: Activated
    convolution: Convolution | None = None


@dataclass(frozen=True)
class Input:
    """The x of a layer, (batch, in) or (batch, channels, height, width).

    Attributes:
        node: the FX node that it is.
        before: the nodes to evaluate for it, such as flattening images.
        reads: the FX nodes that these read, or `node` itself: each as (node, vertex, component of its value).
    """

    node: str
    before: tuple[fx.Node, ...]
    reads: tuple[tuple[str, str, int], ...]


def layer_of(program: Program, function: LocalFunction) -> tuple[Layer, Input]:
    """The layer that a vertex is, and what it reads.

    Raises:
        NoChain: it is none.
    """
    vertex, nodes = function.vertex, function.fx_nodes
    hearts = (_aten.linear.default, *_CONVOLUTIONS)
    place = next((place for place, node in enumerate(nodes) if node.target in hearts), None)
    if function.random:
        raise NoChain(f"layer {vertex.name} draws random numbers")
    if place is None:
        raise NoChain(f"layer {vertex.name} is {called(nodes[0])}")
    before, heart, rest = nodes[:place], nodes[place], nodes[place + 1 :]
    weight, bias = (owner(function, argument(heart, name)) for name in ("weight", "bias"))
    computed = [name for name in (weight, bias) if name is not None and not _is_leaf(program.vertex(name))]
    if weight is None or computed or (bias is None and argument(heart, "bias") is not None):
        raise NoChain(f"a parameter of layer {vertex.name} is computed")
    source = _input(function, argument(heart, "input"), before)
    convolves = heart.target in _CONVOLUTIONS
    activation, pool, flat = _what_follows(program, vertex, heart, rest, source)
    if len(vertex.components) != 1 or len(vertex.components[0].shape) != (4 if convolves and not flat else 2):
        raise NoChain(f"the value of layer {vertex.name} is no {'image' if convolves else 'matrix'} of a batch")
    convolution = Convolution(_form(program, vertex, heart, weight), pool) if convolves else None
    return Layer(vertex.name, weight, bias, activation, convolution), source


def _what_follows(
    program: Program, vertex: Vertex, heart: fx.Node, rest: tuple[fx.Node, ...], source: Input
) -> tuple[Activated, Pooling, bool]:
    """The activation, the pooling, and whether images are flattened, in this order; each of them may be missing."""
    activation, pool, flat, last = IDENTITY, NO_POOL, False, heart
    convolves = heart.target in _CONVOLUTIONS
    for node in rest:
        found = activated(node) if last is heart else None
        if node.args[0] is not last or flat:
            raise NoChain(f"layer {vertex.name} ends with {called(node)}")
        if found is not None:
            activation = found
        elif convolves and node.target in _POOLINGS and pool is NO_POOL:
            pool = _pooling(vertex, node)
        elif convolves and node.target in _RESHAPES and _keeps_batch(program, vertex, source):
            flat = True
        else:
            raise NoChain(f"layer {vertex.name} ends with {called(node)}")
        last = node
    return activation, pool, flat


def _keeps_batch(program: Program, vertex: Vertex, source: Input) -> bool:
    """Whether a value that is a matrix has a row for each sample."""
    _, name, index = source.reads[0]
    shapes = vertex.components[0].shape, program.vertex(name).components[index].shape
    return len(shapes[0]) == 2 and bool(shapes[1]) and shapes[0][0] == shapes[1][0]


def _form(program: Program, vertex: Vertex, node: fx.Node, weight: str) -> Form:
    """Stride, padding, dilation and groups."""
    groups = argument(node, "groups")
    if groups != 1:
        raise NoChain(f"layer {vertex.name} has {groups} groups")
    stride, dilation, padding = _two(argument(node, "stride")), _two(argument(node, "dilation")), (0, 0)
    given = argument(node, "padding")
    if given == "same":
        kernel = program.vertex(weight).components[0].shape[-2:]
        around = [step * (int(size) - 1) for step, size in zip(dilation, kernel, strict=True)]
        if any(size % 2 for size in around):
            raise NoChain(f"layer {vertex.name} is padded more at one edge")
        padding = around[0] // 2, around[1] // 2
    elif given != "valid":
        padding = _two(given)
    return stride, padding, dilation, 1


def _pooling(vertex: Vertex, node: fx.Node) -> Pooling:
    """A pooling without padding or overlap."""
    kind, window = _POOLINGS[node.target], _two(argument(node, "kernel_size"))
    given = argument(node, "stride")
    stride = _two(given) if given else window
    padded = any(_two(argument(node, "padding"))) or argument(node, "ceil_mode")
    if padded or any(step < size for step, size in zip(stride, window, strict=True)):
        raise NoChain(f"the windows of layer {vertex.name} overlap or are padded")
    if kind == "max":
        odd = _two(argument(node, "dilation")) != (1, 1)
    else:
        odd = argument(node, "divisor_override") is not None
    if odd or window[0] * window[1] > LARGEST_WINDOW:
        raise NoChain(f"no kernel pools as layer {vertex.name} does")
    return Pooling(kind, (*window, *stride))


def _two(sizes: int | list[int]) -> tuple[int, int]:
    return (sizes, sizes) if isinstance(sizes, int) else (sizes[0], sizes[-1])


def _is_leaf(vertex: Vertex) -> bool:
    return vertex.clamped and not vertex.nodes


def _input(function: LocalFunction, x: fx.Node, before: tuple[fx.Node, ...]) -> Input:
    """What a layer reads, through what comes before its product."""
    given = {name: (parent, index) for parent, read in function.reads.items() for index, name, _ in read}
    nodes = dict.fromkeys([x, *(node for step in before for node in step.all_input_nodes)])
    outside = [node.name for node in nodes if node not in before]
    if before and x is not before[-1]:
        raise NoChain(f"layer {function.vertex.name} starts with {called(before[0])}")
    return Input(x.name, before, tuple((name, *given[name]) for name in outside))


def owner(function: LocalFunction, node: fx.Node | None) -> str | None:
    """The parent that a node is a component of."""
    if node is None:
        return None
    return next((parent for parent, read in function.reads.items() if node.name in [name for _, name, _ in read]), None)


def called(node: fx.Node) -> str:
    """What a node does, in words."""
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    return "a convolution" if "conv" in name else name
