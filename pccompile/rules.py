"""The learning rules: each says which updates happen at which steps (its literal schedule) and which passes apply.

Sources: Z-IL, Salvatori et al. 2022 (arXiv:2103.03725) and Song et al. 2020; fixed prediction, Millidge et al. 2022
(arXiv:2006.04182) and Rosenbaum 2022; strict, Whittington and Bogacz 2017; incremental, Salvatori et al. 2024
(arXiv:2212.00720).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import networkx as nx

from pccompile.errors import UsageError
from pccompile.ir.grammar import Action, Kind, Program, Span, Update, Vertex

__all__ = ["ZIL", "FixedPrediction", "Incremental", "Rule", "Strict", "literal_program"]

ValueOptimizer = Literal["sgd", "momentum", "adam"]


@dataclass(frozen=True)
class ZIL:
    """Zero-divergence inference learning: gradients equal backpropagation's, exactly, on any graph.

    Strict inference with step size 1 on the levelled graph; a vertex learns only at the step that equals its level.
    """

    name: ClassVar[str] = "ZIL"
    exact: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    passes: ClassVar[tuple[str, ...]] = ("level", "zero errors", "liveness", "reuse", "error state", "bypass")

    steps: ClassVar[int] = 0
    step_size: ClassVar[float] = 1.0

    def literal(self, graph: nx.DiGraph) -> list[Update]:
        """Every update of every vertex at every step 0..depth; Learn only at the vertex's level."""
        vertices = _vertices(graph)
        depth = max((vertex.level for vertex in vertices if vertex.level is not None), default=0)
        always = Span.steps(0, depth + 1)
        schedule = list(_inference(graph, always, always, always, exact=True))
        for vertex in _learners(graph):
            level = max(vertex.level or 0, 0)  # the loss vertex itself learns with the outputs
            schedule.append(Update(Action.LEARN, vertex.name, Span.steps(level, level + 1)))
        return schedule


@dataclass(frozen=True)
class FixedPrediction:
    """The fixed prediction assumption: predictions and Jacobians stay those of the feed-forward pass.

    Args:
        steps: number of inference steps n, at least 1.
        step_size: eta, in (0, 1].
        levelled: make all paths equally long with delay vertices, which allows the closed form on any graph.
    """

    name: ClassVar[str] = "FixedPrediction"
    exact: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = False

    steps: int = 20
    step_size: float = 0.1
    levelled: bool = False

    def __post_init__(self) -> None:
        _check_steps(self.steps, self.step_size)
        if self.step_size > 1:
            raise UsageError(f"step_size={self.step_size}", cure="choose a step size in (0, 1]")

    @property
    def passes(self) -> tuple[str, ...]:
        """The passes of this rule, in order."""
        level = ("level",) if self.levelled else ()
        return (*level, "error state", "closed form", "reuse", "liveness", "bypass")

    def literal(self, graph: nx.DiGraph) -> list[Update]:
        """Predict once; compare and infer for T steps against those predictions; learn at step T."""
        schedule = list(_inference(graph, Span.steps(0, 1), Span.whole(), Span.inference()))
        return schedule + [Update(Action.LEARN, vertex.name, Span.final()) for vertex in _learners(graph)]


@dataclass(frozen=True)
class Strict:
    """Inference learning as first published: predictions follow the values in every step.

    Args:
        steps: number of inference steps T, at least 1.
        step_size: eta of the value optimizer.
        optimizer: the optimizer of the values: plain descent, "momentum", or "adam".
        momentum: factor of "momentum".
        betas, epsilon: the constants of "adam".
        tolerance: stop inferring when the energy's relative change in a step is below it; 0 never stops early.
            The energy is the batch's, so this is the one option that lets samples share a decision.
        learn_errors: learn with the errors after the last move ("current") or before it ("previous", as Torch2PC).
        batch_energy: "per_sample" descends each sample's own energy when the loss is a mean over the batch and divides
            the gradients by the batch size; "as_given" takes the loss as it is.
    """

    name: ClassVar[str] = "Strict"
    exact: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = True
    passes: ClassVar[tuple[str, ...]] = ("liveness", "reuse")

    steps: int = 20
    step_size: float = 0.1
    optimizer: ValueOptimizer = "sgd"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    tolerance: float = 0.0
    learn_errors: Literal["current", "previous"] = "current"
    batch_energy: Literal["per_sample", "as_given"] = "per_sample"

    def __post_init__(self) -> None:
        _check_inference(self)
        _check_choice("learn_errors", self.learn_errors, ("current", "previous"))

    def literal(self, graph: nx.DiGraph) -> list[Update]:
        """Predict, Compare, Infer in every step of [0, T); then Predict, Compare, Learn at step T."""
        compare = Span.whole() if self.learn_errors == "current" else Span.inference()
        schedule = list(_inference(graph, Span.whole(), compare, Span.inference()))
        return schedule + [Update(Action.LEARN, vertex.name, Span.final()) for vertex in _learners(graph)]


@dataclass(frozen=True)
class Incremental:
    """Incremental predictive coding (iPC): strict, with Learn and a parameter step in each of the T steps.

    The parameter steps are taken by the torch optimizer given to `pc.step(x, y, optimizer)`. The arguments are those
    of `Strict`.
    """

    name: ClassVar[str] = "Incremental"
    exact: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = True
    passes: ClassVar[tuple[str, ...]] = ("liveness", "reuse")

    steps: int = 20
    step_size: float = 0.1
    optimizer: ValueOptimizer = "sgd"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    tolerance: float = 0.0
    batch_energy: Literal["per_sample", "as_given"] = "per_sample"

    def __post_init__(self) -> None:
        _check_inference(self)

    def literal(self, graph: nx.DiGraph) -> list[Update]:
        """Predict, Compare, Infer, Learn and Descend in every step of [0, T)."""
        every = Span.inference()
        schedule = list(_inference(graph, every, every, every))
        schedule += [Update(Action.LEARN, vertex.name, every) for vertex in _learners(graph)]
        trained = [v.name for v in _vertices(graph) if v.kind is Kind.PARAMETER and v.requires_grad]
        return schedule + [Update(Action.DESCEND, name, every) for name in trained]


Rule = ZIL | FixedPrediction | Strict | Incremental


def literal_program(rule: Rule, graph: nx.DiGraph, observed: bool = False) -> Program:
    """The rule written out on a graph; `observed` if somebody reads the energy in every step."""
    return Program(nx.freeze(graph), tuple(rule.literal(graph)), rule.name, observed=observed)


def _inference(graph: nx.DiGraph, predict: Span, compare: Span, infer: Span, exact: bool = False) -> Iterator[Update]:
    """Predict, Compare and Infer of every vertex that has them, over the given spans."""
    vertices = _vertices(graph)
    for vertex in vertices:
        if vertex.kind is Kind.CONSTANT and vertex.nodes:
            yield Update(Action.PREDICT, vertex.name, Span.steps(0, 1))
        elif not vertex.clamped and (vertex.nodes or vertex.kind is not Kind.LOSS):
            yield Update(Action.PREDICT, vertex.name, predict)
    tests: tuple[tuple[Action, Span, Callable[[Vertex], bool]], ...] = (
        (Action.COMPARE, compare, lambda vertex: vertex.has_error),
        (Action.INFER, infer, lambda vertex: vertex.moves),
    )
    for action, span, has in tests:
        unit = exact and action is Action.INFER
        yield from (Update(action, vertex.name, span, exact=unit) for vertex in vertices if has(vertex))


def _learners(graph: nx.DiGraph) -> Iterator[Vertex]:
    """The vertices with an error (or the loss) that read something clamped whose gradient is wanted."""
    for vertex in _vertices(graph):
        wanted = any(_is_wanted(graph.nodes[parent]["vertex"]) for parent in graph.predecessors(vertex.name))
        if not vertex.clamped and wanted:
            yield vertex


def _is_wanted(parent: Vertex) -> bool:
    return parent.clamped and parent.requires_grad


def _vertices(graph: nx.DiGraph) -> list[Vertex]:
    return sorted((data["vertex"] for _, data in graph.nodes(data=True)), key=lambda vertex: vertex.order)


def _check_steps(steps: int, step_size: float) -> None:
    if steps < 1:
        raise UsageError(f"steps={steps}", cure="choose at least one inference step")
    if not step_size > 0:
        raise UsageError(f"step_size={step_size}", cure="choose a positive step size")


def _check_inference(rule: Strict | Incremental) -> None:
    _check_steps(rule.steps, rule.step_size)
    _check_choice("optimizer", rule.optimizer, ("sgd", "momentum", "adam"))
    _check_choice("batch_energy", rule.batch_energy, ("per_sample", "as_given"))
    if rule.tolerance < 0:
        raise UsageError(f"tolerance={rule.tolerance}", cure="choose 0 (never stop early) or more")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name}={value!r}", cure=f"choose one of {', '.join(map(repr, choices))}")
