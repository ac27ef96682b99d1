"""Models, and the same models written out by hand as vertices; `Case` pairs the two."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from references import Graph, Tensor, Tensors, Vertex
from torch import nn


@dataclass(frozen=True)
class Case:
    """A model, what `pccompile.compile` is told its vertices are, and these vertices written out by hand."""

    name: str
    build: Callable[[], nn.Module]
    vertices: str | list[str]
    graph: Graph
    features: int = 6

    def __str__(self) -> str:
        return self.name

    def model(self) -> nn.Module:
        """A copy of the model in float64, with the same parameters every time."""
        return copy.deepcopy(_built(self.build))

    def batch(self, samples: int = 5) -> tuple[Tensor, Tensor]:
        """Inputs and the classes of the samples."""
        generator = torch.Generator().manual_seed(11)
        x = torch.randn(samples, self.features, generator=generator, dtype=torch.float64)
        return x, torch.randint(0, 4, (samples,), generator=generator)


@cache
def _built(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return build().double()


def affine(name: str) -> Callable[[Tensors, Tensor], Tensor]:
    """v W^T + b of one linear layer."""
    return lambda clamped, value: value @ clamped[f"{name}.weight"].T + clamped[f"{name}.bias"]


def on_input(predict: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The prediction whose first parent is the clamped input."""
    return lambda clamped, *values: predict(clamped, clamped["x"], *values)


def after(activation: Callable[[Tensor], Tensor], predict: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The prediction followed by an activation."""
    return lambda clamped, *values: activation(predict(clamped, *values))


def chain(widths: tuple[int, ...] = (6, 7, 5, 4)) -> nn.Sequential:
    """Linear layers with tanh between them."""
    pairs = list(pairwise(widths))
    layers = [module for a, b in pairs for module in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def chain_layers(linears: int = 3) -> Graph:
    """`chain` with a vertex for each linear layer and the tanh that follows it."""
    vertices = []
    for index in range(linears):
        predict = affine(str(2 * index))
        predict = after(torch.tanh, predict) if index < linears - 1 else predict
        predict = predict if index else on_input(predict)
        vertices.append(Vertex(f"v{index}", (f"v{index - 1}",) if index else (), predict))
    return Graph(tuple(vertices), (f"v{linears - 1}",))


class Skips(nn.Module):
    """Skips of several lengths, one multiplied and not added, one that ends at the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = nn.Linear(6, 4), *(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.a(x))
        b = torch.tanh(self.b(a))
        c = torch.tanh(self.c(b)) + a
        d = torch.tanh(self.d(c)) * b
        return self.e(d) + a


class Blocks(nn.Module):
    """A residual network of modules: the skips are inside the blocks."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.inner = nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tanh(self.inner(x))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = nn.Linear(6, 5), self.Block(5), self.Block(5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(torch.tanh(self.stem(x)))))


class Tied(nn.Module):
    """One cell applied three times, with a skip between the uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cell, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.stem(x))
        b = torch.tanh(self.cell(a))
        c = torch.tanh(self.cell(b)) + a
        return self.head(torch.tanh(self.cell(c)))


class TwoHeads(nn.Module):
    """The loss reads a hidden value as well, which others read too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.a(x))
        return hidden, self.c(torch.tanh(self.b(hidden)))


def _residual(name: str) -> Callable[[Tensors, Tensor], Tensor]:
    return lambda clamped, value: value + torch.tanh(affine(name)(clamped, value))


def _add(predict: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda clamped, value, skip: predict(clamped, value) + skip


def _multiply(predict: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda clamped, value, skip: predict(clamped, value) * skip


def _tanh_of(name: str) -> Callable[..., Tensor]:
    return after(torch.tanh, affine(name))


def _tanh(_: Tensors, value: Tensor) -> Tensor:
    return torch.tanh(value)


def _plus(_: Tensors, first: Tensor, second: Tensor) -> Tensor:
    return first + second


CHAIN = Case("chain of layers", chain, "layers", chain_layers())

CHAIN_NODES = Case(
    "chain of nodes",
    chain,
    "nodes",
    Graph(
        (
            Vertex("0", (), on_input(affine("0"))),
            Vertex("1", ("0",), _tanh),
            Vertex("2", ("1",), affine("2")),
            Vertex("3", ("2",), _tanh),
            Vertex("4", ("3",), affine("4")),
        ),
        ("4",),
    ),
)

CHAIN_MODULES = Case(
    "chain of named modules",
    chain,
    ["0", "2"],
    Graph(
        (
            Vertex("0", (), on_input(affine("0"))),
            Vertex("2", ("0",), lambda clamped, value: affine("2")(clamped, torch.tanh(value))),
            Vertex("4", ("2",), lambda clamped, value: affine("4")(clamped, torch.tanh(value))),
        ),
        ("4",),
    ),
)

SKIPS = Case(
    "skips of layers",
    Skips,
    "layers",
    Graph(
        (
            Vertex("a", (), on_input(_tanh_of("a"))),
            Vertex("b", ("a",), _tanh_of("b")),
            Vertex("c", ("b", "a"), _add(_tanh_of("c"))),
            Vertex("d", ("c", "b"), _multiply(_tanh_of("d"))),
            Vertex("out", ("d", "a"), _add(affine("e"))),
        ),
        ("out",),
    ),
)

SKIPS_NODES = Case(
    "skips of nodes",
    Skips,
    "nodes",
    Graph(
        (
            Vertex("a", (), on_input(affine("a"))),
            Vertex("tanh a", ("a",), _tanh),
            Vertex("b", ("tanh a",), affine("b")),
            Vertex("tanh b", ("b",), _tanh),
            Vertex("c", ("tanh b",), affine("c")),
            Vertex("tanh c", ("c",), _tanh),
            Vertex("add c", ("tanh c", "tanh a"), _plus),
            Vertex("d", ("add c",), affine("d")),
            Vertex("tanh d", ("d",), _tanh),
            Vertex("mul d", ("tanh d", "tanh b"), lambda _, value, skip: value * skip),
            Vertex("e", ("mul d",), affine("e")),
            Vertex("out", ("e", "tanh a"), _plus),
        ),
        ("out",),
    ),
)

BLOCKS = Case(
    "residual blocks as named modules",
    Blocks,
    ["stem", "first", "second"],
    Graph(
        (
            Vertex("stem", (), on_input(affine("stem"))),
            Vertex("first", ("stem",), lambda clamped, value: _residual("first.inner")(clamped, torch.tanh(value))),
            Vertex("second", ("first",), _residual("second.inner")),
            Vertex("head", ("second",), affine("head")),
        ),
        ("head",),
    ),
)

TIED = Case(
    "tied weights",
    Tied,
    "layers",
    Graph(
        (
            Vertex("a", (), on_input(_tanh_of("stem"))),
            Vertex("b", ("a",), _tanh_of("cell")),
            Vertex("c", ("b", "a"), _add(_tanh_of("cell"))),
            Vertex("d", ("c",), _tanh_of("cell")),
            Vertex("out", ("d",), affine("head")),
        ),
        ("out",),
    ),
)

TWO_HEADS = Case(
    "a hidden value that the loss reads too",
    TwoHeads,
    "layers",
    Graph(
        (
            Vertex("a", (), on_input(_tanh_of("a"))),
            Vertex("b", ("a",), _tanh_of("b")),
            Vertex("a to the loss", ("a",), lambda _, value: value),
            Vertex("c", ("b",), affine("c")),
        ),
        ("a to the loss", "c"),
    ),
)

SINGLE_OUTPUT_CASES = [CHAIN, CHAIN_NODES, CHAIN_MODULES, SKIPS, SKIPS_NODES, BLOCKS, TIED]
