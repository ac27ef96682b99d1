"""The learning rules transcribed from their equations, on models written out by hand as lists of vertices.

Nothing here comes from pccompile: a vertex is a plain function, its Jacobian products come from `torch.func.vjp`, and
every rule is the loop that its definition says. `clamped` holds the parameters and the input "x", so the gradient by
the input falls out with the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

Tensor = torch.Tensor
Tensors = dict[str, Tensor]
Loss = Callable[..., Tensor]
Compile = Callable[..., Any]  # the fixtures of conftest.py
Gradients = Callable[..., Tensors]


@dataclass(frozen=True)
class Vertex:
    """A prediction: mu = predict(clamped, *values of the parents)."""

    name: str
    parents: tuple[str, ...]
    predict: Callable[..., Tensor]


@dataclass(frozen=True)
class Graph:
    """Vertices in the order of the feed-forward pass, and which of them are read by the loss alone."""

    vertices: tuple[Vertex, ...]
    outputs: tuple[str, ...]

    @property
    def hidden(self) -> list[Vertex]:
        return [vertex for vertex in self.vertices if vertex.name not in self.outputs]

    def children(self, name: str) -> list[Vertex]:
        return [vertex for vertex in self.vertices if name in vertex.parents]

    def levels(self) -> dict[str, int]:
        """Length of the longest path to an output vertex."""
        level: dict[str, int] = {}
        for vertex in reversed(self.vertices):
            level[vertex.name] = max((level[child.name] + 1 for child in self.children(vertex.name)), default=0)
        return {vertex.name: level[vertex.name] for vertex in self.vertices}

    def paths(self, name: str) -> Iterator[tuple[str, ...]]:
        """Every path from a vertex to an output vertex, as the vertices passed after it."""
        if name in self.outputs:
            yield ()
        for child in self.children(name):
            for rest in self.paths(child.name):
                yield (child.name, *rest)

    def levelled(self) -> Graph:
        """The graph with delay vertices, so that every edge joins consecutive levels."""
        level = self.levels()
        vertices: list[Vertex] = []
        for vertex in self.vertices:
            parents = tuple(_delay(p, level[vertex.name] + 1, level[p]) for p in vertex.parents)
            vertices.append(replace(vertex, parents=parents))
            lowest = min((level[child.name] for child in self.children(vertex.name)), default=level[vertex.name])
            for at in range(level[vertex.name] - 1, lowest, -1):
                before = _delay(vertex.name, at + 1, level[vertex.name])
                vertices.append(Vertex(_delay(vertex.name, at, level[vertex.name]), (before,), lambda _, value: value))
        return Graph(tuple(vertices), self.outputs)


def _delay(name: str, level: int, source_level: int) -> str:
    return name if level == source_level else f"{name} at level {level}"


@dataclass(frozen=True)
class Linear:
    """f_i at one point: the prediction, and J^T e by each parent (once per edge) and by the clamped tensors."""

    prediction: Tensor
    to_parents: Callable[[Tensor], tuple[Tensor, ...]]
    to_clamped: Callable[[Tensor], Tensors]


@dataclass
class Result:
    """Gradients by name of the clamped tensor, the energies F(0), F(1), ..., and the number of moves made."""

    gradients: Tensors
    energies: list[float] = field(default_factory=list)
    moves: int = 0


def clamped_tensors(model: nn.Module, x: Tensor) -> Tensors:
    """Detached copies of the parameters, and the input."""
    return {**{name: p.detach().clone() for name, p in model.named_parameters()}, "x": x.detach().clone()}


def feed_forward(graph: Graph, clamped: Tensors) -> Tensors:
    values: Tensors = {}
    for vertex in graph.vertices:
        values[vertex.name] = vertex.predict(clamped, *(values[parent] for parent in vertex.parents))
    return values


def linearise(graph: Graph, clamped: Tensors, values: Tensors) -> dict[str, Linear]:
    """Every prediction and its Jacobian products at the given values."""
    return {
        vertex.name: _linearise(vertex, clamped, [values[parent] for parent in vertex.parents])
        for vertex in graph.vertices
    }


def _linearise(vertex: Vertex, clamped: Tensors, parents: list[Tensor]) -> Linear:
    def to_clamped(error: Tensor) -> Tensors:
        _, pull = torch.func.vjp(lambda tensors: vertex.predict(tensors, *parents), clamped)
        return pull(error)[0]

    if not parents:
        return Linear(vertex.predict(clamped), lambda _: (), to_clamped)
    prediction, to_parents = torch.func.vjp(partial(vertex.predict, clamped), *parents)
    return Linear(prediction, to_parents, to_clamped)


def loss_and_errors(graph: Graph, linear: Mapping[str, Linear], loss: Loss) -> tuple[Tensor, Tensors]:
    """L and -dL/dmu at the present predictions of the output vertices."""
    outputs = [linear[name].prediction.detach().requires_grad_() for name in graph.outputs]
    value = loss(*outputs)
    found = torch.autograd.grad(value, outputs)
    return value.detach(), {name: -gradient for name, gradient in zip(graph.outputs, found, strict=True)}


def incoming(graph: Graph, linear: Mapping[str, Linear], errors: Tensors, name: str) -> Tensor:
    """Sum over the children c of J(c, i)^T e_c."""
    total = torch.zeros_like(linear[name].prediction)
    for child in graph.children(name):
        pulled = linear[child.name].to_parents(errors[child.name])
        total = total + sum(part for parent, part in zip(child.parents, pulled, strict=True) if parent == name)
    return total


def learned(graph: Graph, linear: Mapping[str, Linear], errors: Tensors, of: Iterable[str] | None = None) -> Tensors:
    """dF/dtheta = -sum over the vertices of J(i, theta)^T e_i."""
    names = [vertex.name for vertex in graph.vertices] if of is None else list(of)
    totals: Tensors = {}
    for name in names:
        for key, part in linear[name].to_clamped(errors[name]).items():
            totals[key] = totals.get(key, 0) - part
    return totals


def backpropagation(graph: Graph, clamped: Tensors, loss: Loss) -> Tensors:
    """The exact gradient of the hand-written graph, by autograd."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in clamped.items()}
    values = feed_forward(graph, leaves)
    found = torch.autograd.grad(loss(*(values[name] for name in graph.outputs)), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


class ValueOptimizer:
    """One optimizer for all values: plain descent, momentum, or Adam (Kingma and Ba 2015, algorithm 1)."""

    def __init__(self, kind: str, step_size: float, momentum: float, betas: tuple[float, float], epsilon: float):
        self.kind, self.step_size, self.momentum, self.betas, self.epsilon = kind, step_size, momentum, betas, epsilon
        self.first: Tensors = {}
        self.second: Tensors = {}
        self.count: dict[str, int] = {}

    def step(self, name: str, value: Tensor, direction: Tensor) -> Tensor:
        first = self.first.get(name, torch.zeros_like(value))
        if self.kind == "sgd":
            return value + self.step_size * direction
        if self.kind == "momentum":
            self.first[name] = self.momentum * first + direction
            return value + self.step_size * self.first[name]
        b1, b2 = self.betas
        second = self.second.get(name, torch.zeros_like(value))
        t = self.count[name] = self.count.get(name, 0) + 1
        m = self.first[name] = b1 * first + (1 - b1) * direction
        v = self.second[name] = b2 * second + (1 - b2) * direction**2
        return value + self.step_size * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + self.epsilon)


def strict(
    graph: Graph,
    clamped: Tensors,
    loss: Loss,
    steps: int,
    step_size: float,
    *,
    scale: float = 1.0,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    learn_errors: str = "current",
    tolerance: float = 0.0,
) -> Result:
    """Inference learning: T times Predict, Compare, Infer of everything at once; then Predict, Compare, Learn.

    Args:
        scale: what the loss is multiplied by while inferring, and the gradients divided by at the end (the batch size
            for a mean-reduced loss where each sample descends its own energy).
        learn_errors: "previous" learns with the errors of the last Compare before the last move.
        tolerance: no more moves after the one of a step whose energy differs from the step before by less than this.
    """
    values = feed_forward(graph, clamped)
    mover = ValueOptimizer(optimizer, step_size, momentum, betas, epsilon)
    energies: list[float] = []
    errors: Tensors = {}
    moves = 0
    for _ in range(steps):
        linear = linearise(graph, clamped, values)
        errors, now = _compare(graph, linear, values, loss, scale)
        values = _infer(graph, linear, errors, values, mover)
        energies.append(now)
        moves += 1
        if len(energies) > 1 and abs(energies[-1] - energies[-2]) < tolerance * abs(energies[-2]):
            break
    linear = linearise(graph, clamped, values)
    current, last = _compare(graph, linear, values, loss, scale)
    energies.append(last)
    used = current if learn_errors == "current" else errors
    return Result({name: g / scale for name, g in learned(graph, linear, used).items()}, energies, moves)


def incremental(
    graph: Graph,
    parameters: Mapping[str, nn.Parameter],
    x: Tensor,
    loss: Loss,
    steps: int,
    step_size: float,
    optimizer: torch.optim.Optimizer,
    *,
    scale: float = 1.0,
    value_optimizer: str = "sgd",
) -> None:
    """T times Predict, Compare, then Infer and Learn at once, then a step of the parameters' optimizer."""
    values = feed_forward(graph, _detached(parameters, x))
    mover = ValueOptimizer(value_optimizer, step_size, 0.9, (0.9, 0.999), 1e-8)
    for _ in range(steps):
        linear = linearise(graph, _detached(parameters, x), values)
        errors, _ = _compare(graph, linear, values, loss, scale)
        gradients = learned(graph, linear, errors)
        values = _infer(graph, linear, errors, values, mover)
        for name, parameter in parameters.items():
            parameter.grad = gradients[name] / scale
        optimizer.step()


def _detached(parameters: Mapping[str, nn.Parameter], x: Tensor) -> Tensors:
    return {**{name: parameter.detach().clone() for name, parameter in parameters.items()}, "x": x}


def _compare(
    graph: Graph, linear: Mapping[str, Linear], values: Tensors, loss: Loss, scale: float
) -> tuple[Tensors, float]:
    """The errors, and the energy."""
    value, errors = loss_and_errors(graph, linear, loss)
    errors = {name: scale * error for name, error in errors.items()}
    energy = scale * float(value)
    for vertex in graph.hidden:
        error = errors[vertex.name] = values[vertex.name] - linear[vertex.name].prediction
        energy += float((error**2).sum()) / 2
    return errors, energy


def _infer(
    graph: Graph, linear: Mapping[str, Linear], errors: Tensors, values: Tensors, mover: ValueOptimizer
) -> Tensors:
    """Every hidden value moved along -e_i + sum over children of J^T e_c, simultaneously."""
    return {
        **values,
        **{
            v.name: mover.step(v.name, values[v.name], -errors[v.name] + incoming(graph, linear, errors, v.name))
            for v in graph.hidden
        },
    }


def fixed_prediction(graph: Graph, clamped: Tensors, loss: Loss, steps: int, step_size: float) -> Tensors:
    """The gradients of fixed prediction after n steps."""
    linear = linearise(graph, clamped, feed_forward(graph, clamped))
    *_, errors = fixed_prediction_errors(graph, clamped, loss, steps, step_size)
    return learned(graph, linear, errors)


def fixed_prediction_gradients(
    graph: Graph, clamped: Tensors, loss: Loss, steps: int, step_size: float
) -> Iterator[Tensors]:
    """What Learn gives after 0, 1, ..., n steps, at the Jacobians of the feed-forward pass."""
    linear = linearise(graph, clamped, feed_forward(graph, clamped))
    for errors in fixed_prediction_errors(graph, clamped, loss, steps, step_size):
        yield learned(graph, linear, errors)


def fixed_prediction_errors(
    graph: Graph, clamped: Tensors, loss: Loss, steps: int, step_size: float
) -> Iterator[Tensors]:
    """e_i <- (1 - eta) e_i + eta sum J^T e_c at the Jacobians of the feed-forward pass, after 0, 1, ..., n steps."""
    linear = linearise(graph, clamped, feed_forward(graph, clamped))
    _, outer = loss_and_errors(graph, linear, loss)
    errors = {v.name: torch.zeros_like(linear[v.name].prediction) for v in graph.hidden} | outer
    yield errors
    for _ in range(steps):
        moved = {
            v.name: (1 - step_size) * errors[v.name] + step_size * incoming(graph, linear, errors, v.name)
            for v in graph.hidden
        }
        errors = {**errors, **moved}
        yield errors


def zil(graph: Graph, clamped: Tensors, loss: Loss) -> Tensors:
    """Strict with step size 1, where a vertex learns only at the step that equals its level, before it moves."""
    values = feed_forward(graph, clamped)
    level = graph.levels()
    mover = ValueOptimizer("sgd", 1.0, 0.0, (0.0, 0.0), 0.0)
    totals: Tensors = {}
    for t in range(max(level.values()) + 1):
        linear = linearise(graph, clamped, values)
        errors, _ = _compare(graph, linear, values, loss, 1.0)
        learners = [name for name, at in level.items() if at == t]
        for name, part in learned(graph, linear, errors, learners).items():
            totals[name] = totals.get(name, 0) + part
        values = _infer(graph, linear, errors, values, mover)
    return totals


def along_paths(graph: Graph, clamped: Tensors, loss: Loss, weight: Callable[[int], float]) -> Tensors:
    """Backpropagation summed path by path, a path of p edges between a vertex and an output weighted by weight(p)."""
    linear = linearise(graph, clamped, feed_forward(graph, clamped))
    _, outer = loss_and_errors(graph, linear, loss)
    errors: Tensors = {}
    for vertex in graph.vertices:
        total = torch.zeros_like(linear[vertex.name].prediction)
        for path in graph.paths(vertex.name):
            error = outer[path[-1]] if path else outer[vertex.name]
            for below, above in reversed(list(zip((vertex.name, *path), path, strict=False))):
                error = _pull_to(graph, linear, error, below, above)
            total = total + weight(len(path)) * error
        errors[vertex.name] = total
    return learned(graph, linear, errors)


def _pull_to(graph: Graph, linear: Mapping[str, Linear], error: Tensor, below: str, above: str) -> Tensor:
    child = next(vertex for vertex in graph.vertices if vertex.name == above)
    pulled = linear[above].to_parents(error)
    return sum(part for parent, part in zip(child.parents, pulled, strict=True) if parent == below)


def tail(trials: int, probability: float, at_least: int) -> float:
    """P[Binomial(trials, probability) >= at_least], summed term by term."""
    terms = (
        math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in range(at_least, trials + 1)
    )
    return math.fsum(terms)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|."""
    difference = float((actual.double() - expected.double()).norm())
    scale = float(expected.double().norm())
    return difference / scale if scale else difference


def worst(actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor]) -> float:
    """The largest relative error over all tensors of `actual`; infinite where a gradient is missing."""
    assert actual
    return max(math.inf if g is None else relative_error(g, expected[name]) for name, g in actual.items())
