"""The literal back end: the reference evaluator on torch tensors. Slow, and what everything else is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from pccompile.backends.run import Run, State, energy
from pccompile.derivatives import Linearisation, LocalFunction, Value
from pccompile.ir.evaluate import Evaluator
from pccompile.ir.grammar import Action, Kind, Program, Vertex
from pccompile.updates import compare, infer, learn, negative, relax

__all__ = ["LiteralBackend", "TorchSemantics"]


class TorchSemantics:
    """Values are tuples of tensors; derivatives come from the autograd engine, one vertex at a time."""

    def __init__(self, program: Program, functions: Mapping[str, LocalFunction], run: Run) -> None:
        self.program, self.functions, self.run = program, functions, run

    def predict(self, vertex: Vertex, parents: Mapping[str, Value], targets: Iterable[str]) -> Linearisation:
        function = self.functions[vertex.name]
        linearisation: Linearisation = function(self.run.random_states, *(parents[name] for name in function.reads))
        return linearisation

    def prediction(self, linearisation: Linearisation) -> Value:
        return linearisation.prediction

    def pull_back(self, linearisation: Linearisation, error: Value | None, targets: Sequence[str]) -> dict[str, Value]:
        return linearisation.pull_back(error, targets)

    def compare(self, vertex: Vertex, value: Value, prediction: Value) -> Value:
        return compare(value, prediction, tuple(component.free for component in vertex.components))

    def relax(self, error: Value | None, step_size: float, contributions: Iterable[Value]) -> Value | None:
        return relax(error, step_size, *contributions)

    def infer(
        self, value: Value, error: Value | None, moment: Any, contributions: Iterable[Value]
    ) -> tuple[Value, Any]:
        return infer(self.run.optimizer, value, error, moment, *contributions)

    def learn(self, gradient: Value | None, gain: str, contribution: Value) -> Value | None:
        factor = self.run.learn_factor if gain == "1" else self.run.gain(int(gain[2:-1]), -1.0)
        return learn(gradient, factor, contribution)

    def descend(self, parameter: Vertex, gradient: Value | None) -> None:
        self.run.descend(parameter.name, gradient)

    def end_step(self, evaluator: Evaluator, compared: bool) -> bool:
        self.run.end_step()
        if self.run.records and compared:
            self.run.energies.append(energy(self.program, self.run, _state(evaluator)))
        return self.run.settled()

    def loss_error(self) -> Value | None:
        return self.run.loss_error


class LiteralBackend:
    """Executes a program step by step as the grammar reads, with the same interface as the eager back end."""

    def __init__(self, program: Program, functions: Mapping[str, LocalFunction]) -> None:
        self.program, self.functions = program, functions
        self.infers = any(action is Action.INFER for action, _ in program.updates) and program.rule != "ZIL"

    def consumed(self, run: Run) -> frozenset[str]:
        """None: what was read is read again. See `AtenBackend.consumed`."""
        return frozenset()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def feed_forward(self, run: Run, clamped: Mapping[str, Value]) -> State:
        """Predict every vertex once; see `EagerBackend.feed_forward`."""
        evaluator = self._evaluator(run)
        evaluator.feed_forward(clamped)
        return _state(evaluator)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def infer(self, run: Run, state: State, outputs: Mapping[str, Value], keep: bool = False) -> dict[str, Value]:
        """Run everything after the feed-forward pass; see `EagerBackend.infer`. The local graphs are always kept."""
        evaluator = self._evaluator(run)
        evaluator.value = {name: found for (kind, name), found in state.items() if kind == "value"}
        evaluator.linearisation = {name: found for (kind, name), found in state.items() if kind == "prediction"}
        errors = {name: negative(derivative) for name, derivative in outputs.items()}
        for name in list(errors):
            if self.program.vertex(name).kind is Kind.LOSS:
                run.loss_error = errors.pop(name)
        gradients = evaluator.infer(errors)
        if self.infers:
            run.check_finite(self.program, _state(evaluator))
        return gradients

    def _evaluator(self, run: Run) -> Evaluator:
        semantics = TorchSemantics(self.program, self.functions, run)
        return Evaluator(self.program, semantics, run.rule.steps, run.rule.step_size)


def _state(evaluator: Evaluator) -> State:
    tables = (("value", evaluator.value), ("prediction", evaluator.linearisation), ("error", evaluator.error))
    return {(kind, name): found for kind, table in tables for name, found in table.items()}
