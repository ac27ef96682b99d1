"""The reference evaluator: runs a schedule step by step, exactly as the grammar reads.

It is the meaning of a program. Every optimised program, back end and kernel is compared with what it computes for the
literal one. It knows nothing of tensors: arithmetic and derivatives come from a `Semantics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pccompile.ir.grammar import Action, Kind, Program, Update, Vertex

__all__ = ["Evaluator", "Semantics", "active_updates", "updates_by_step"]

Value = Any  # what the semantics says a value is; for torch, a tuple of tensors


class Semantics(Protocol):
    """What a program needs to run: the functions f_i, their derivatives, and arithmetic on values."""

    def predict(self, vertex: Vertex, parents: Mapping[str, Value], targets: Iterable[str]) -> Any:
        """Evaluate f_i; the result (a linearisation) answers `prediction` and `pull_back`."""

    def prediction(self, linearisation: Any) -> Value:
        """mu_i of a linearisation."""

    def pull_back(self, linearisation: Any, error: Value, targets: Sequence[str]) -> Mapping[str, Value]:
        """J(i, parent)^T e_i for each parent named in `targets`."""

    def compare(self, vertex: Vertex, value: Value, prediction: Value) -> Value:
        """v - mu, of what inference may move."""

    def relax(self, error: Value | None, step_size: float, contributions: Iterable[Value]) -> Value:
        """(1 - step_size) * error + step_size * sum of contributions; an error of None is zero."""

    def infer(self, value: Value, error: Value, moment: Any, contributions: Iterable[Value]) -> tuple[Value, Any]:
        """The value after one step of the value optimizer along -error + sum of contributions, and its new state."""

    def learn(self, gradient: Value | None, gain: str, contribution: Value) -> Value:
        """gradient - gain * contribution; a gradient of None is zero."""

    def descend(self, parameter: Vertex, gradient: Value | None) -> None:
        """Hand a parameter's gradient (None: zero) to the parameter optimizer."""

    def end_step(self, evaluator: Evaluator, compared: bool) -> bool:
        """All updates of a step are done, and the errors are up to date if it compared.

        The answer says whether inference has settled and may stop early.
        """

    def loss_error(self) -> Value:
        """The error of the loss vertex: minus the derivative of the energy by the loss."""


def updates_by_step(program: Program, steps: int) -> Iterable[tuple[int, list[Update]]]:
    """Each step with its active updates, sorted into the order in which they run; linear in what runs."""
    ordered = program.ordered
    starting: dict[int, list[int]] = {}
    for index, update in enumerate(ordered):
        starting.setdefault(update.span.start.at(steps), []).append(index)
    end = max((update.span.stop.at(steps) for update in ordered), default=0)
    active: list[int] = []
    for step in range(end):
        active = [index for index in active if ordered[index].span.stop.at(steps) > step]
        active = sorted(active + [i for i in starting.get(step, ()) if ordered[i].span.stop.at(steps) > step])
        yield step, [ordered[index] for index in active]


def active_updates(program: Program, steps: int, step: int) -> list[Update]:
    """The updates of one step, in the order in which they run."""
    return next((updates for number, updates in updates_by_step(program, steps) if number == step), [])


@dataclass
class Evaluator:
    """The state of one program run, and the updates that act on it.

    `feed_forward` runs the predictions of step 0; `infer` runs everything after them. In between the caller may look
    at the predictions and hand in the errors of the output vertices.
    """

    program: Program
    semantics: Semantics
    steps: int
    step_size: float
    value: dict[str, Value] = field(default_factory=dict)
    linearisation: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Value] = field(default_factory=dict)
    moment: dict[str, Any] = field(default_factory=dict)
    gradient: dict[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._loss_is_inside = any(vertex.kind is Kind.LOSS and vertex.nodes for vertex in self.program.vertices)

    def feed_forward(self, clamped: Mapping[str, Value]) -> None:
        """Predict every vertex once, in the order of the graph; each takes its prediction as value."""
        self.value.update(clamped)
        for update in active_updates(self.program, self.steps, 0):
            if update.action is Action.PREDICT:
                self._predict(update.vertex)

    def infer(self, output_errors: Mapping[str, Value]) -> dict[str, Value]:
        """Run the schedule from the comparison of step 0 on; returns dF/dtheta by clamped vertex.

        `output_errors` are -dL/dmu of the output vertices of a program whose loss is outside; empty otherwise.
        """
        self.error.update(output_errors)
        settled = False
        for step, updates in updates_by_step(self.program, self.steps):
            if not settled or step >= self.steps:
                settled = self._step([u for u in updates if step > 0 or u.action is not Action.PREDICT])
        return self.gradient

    def _step(self, updates: list[Update]) -> bool:
        pulled: dict[str, Mapping[str, Value]] = {}
        simultaneous: list[tuple[dict[str, Any], str, Any]] = []
        for update in updates:
            name = update.vertex
            if update.action is Action.PREDICT:
                self._predict(name)
            elif update.action is Action.COMPARE:
                self._compare(name, pulled)
            elif update.action is Action.INFER:
                contributions = self._contributions(name, pulled)
                value, moment = self.semantics.infer(
                    self.value[name], self._error_of(name), self.moment.get(name), contributions
                )
                simultaneous += [(self.value, name, value), (self.moment, name, moment)]
            elif update.action is Action.RELAX:
                step_size = 1.0 if update.exact else self.step_size
                error = self.semantics.relax(self.error.get(name), step_size, self._contributions(name, pulled))
                simultaneous.append((self.error, name, error))
            elif update.action is Action.LEARN:
                self._learn(name, update.gain, pulled)
            elif update.action is Action.DESCEND:
                self.semantics.descend(self.program.vertex(name), self.gradient.pop(name, None))
        for state, name, result in simultaneous:
            state[name] = result
        return self.semantics.end_step(self, any(update.action is Action.COMPARE for update in updates))

    def _predict(self, name: str) -> None:
        parents = {parent.name: self.value[parent.name] for parent in self.program.parents(name)}
        linearisation = self.semantics.predict(self.program.vertex(name), parents, self.program.pulls_back_to(name))
        self.linearisation[name] = linearisation
        if name not in self.value or self.program.vertex(name).follows:
            self.value[name] = self.semantics.prediction(linearisation)

    def _compare(self, name: str, pulled: dict[str, Mapping[str, Value]]) -> None:
        if self.program.vertex(name).kind is not Kind.OUTPUT:
            prediction = self.semantics.prediction(self.linearisation[name])
            self.error[name] = self.semantics.compare(self.program.vertex(name), self.value[name], prediction)
        elif self._loss_is_inside:
            self.error[name] = self.semantics.relax(None, 1.0, self._contributions(name, pulled))

    def _error_of(self, name: str) -> Value | None:
        if self.program.vertex(name).kind is Kind.LOSS:
            return self.semantics.loss_error() if self._loss_is_inside else None
        return self.error.get(name)

    def _pull(self, name: str, pulled: dict[str, Mapping[str, Value]]) -> Mapping[str, Value]:
        if name not in pulled:
            error = self._error_of(name)
            targets = self.program.pulls_back_to(name)
            nothing: Mapping[str, Value] = {}
            known = error is not None and name in self.linearisation
            pulled[name] = self.semantics.pull_back(self.linearisation[name], error, targets) if known else nothing
        return pulled[name]

    def _contributions(self, name: str, pulled: dict[str, Mapping[str, Value]]) -> list[Value]:
        children = [child.name for child in self.program.children(name)]
        return [pull[name] for pull in (self._pull(child, pulled) for child in children) if name in pull]

    def _learn(self, name: str, gain: str, pulled: dict[str, Mapping[str, Value]]) -> None:
        pull = self._pull(name, pulled)
        for parent in self.program.learned(name):
            if parent.name in pull:
                old = self.gradient.get(parent.name)
                self.gradient[parent.name] = self.semantics.learn(old, gain, pull[parent.name])
