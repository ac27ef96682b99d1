"""What one run of a program carries beside its state: run-time scalars, random states, the two optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from pccompile.derivatives import Linearisation, RandomStates, Value
from pccompile.errors import NonFiniteError
from pccompile.ir.check import place
from pccompile.ir.grammar import Kind, Program
from pccompile.passes.closed_form import binomial_tail
from pccompile.rules import Rule
from pccompile.updates import ValueOptimizer, length, squared_norm

__all__ = ["Run", "State", "energy", "first_non_finite", "value_optimizer"]

State = dict[tuple[str, str], Any]  # ("value" | "prediction" | "error" | "moment" | "gradient", vertex) -> what it is


@dataclass
class Run:
    """One training step's run of a program. Nothing here changes what was compiled.

    Attributes:
        rule: the rule, for its scalars.
        kinds: the kinds of the flattened inputs (`Call.kinds`).
        parameters: the live parameters by vertex name (for the parameter steps of the incremental rule).
        optimizer_step: takes one step of the parameters' optimizer; only the incremental rule needs it.
        loss_scale: how many samples the loss is the mean of: inference descends loss_scale * L + sum |e|^2 / 2.
        loss_error: the error of the loss vertex, as a value.
        learn_factor: what turns J^T e, after inference that moves values, into the gradient that is asked for.
        random_states: random states of the forward pass's draws, so that they are held in every step.
        energies: the energy of each step, filled while inferring if somebody reads it.
        record_energies: somebody does.
        cuda_graph: whether launches are recorded as CUDA graphs: True, False, or "auto": where that is possible.
        stepped: a parameter's gradient was handed in during this inference step.
    """

    rule: Rule
    kinds: Hashable = ()
    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)
    optimizer_step: Callable[[], Any] | None = None
    loss_scale: float = 1.0
    loss_error: Value | None = None
    learn_factor: Any = -1.0
    random_states: RandomStates = field(default_factory=dict)
    energies: list[float] = field(default_factory=list)
    record_energies: bool = False
    cuda_graph: bool | str = False
    stepped: bool = False

    @property
    def step_size(self) -> float:
        """eta."""
        return self.rule.step_size

    @property
    def optimizer(self) -> ValueOptimizer:
        """The optimizer of the values."""
        return value_optimizer(self.rule)

    def gain(self, level: int, sign: float = 1.0) -> float:
        """sign * P[Binomial(T, eta) >= level]."""
        return sign * binomial_tail(self.rule.steps, self.rule.step_size, level)

    def gains(self, levels: tuple[Any, ...], device: torch.device) -> torch.Tensor:
        """The gains of levels in nested tuples, float32; zero for None, where nothing is learned."""
        return _gains(self.rule, levels, device)

    def scalars(self, wanted: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        """What a run provides under each key: an attribute of it, or a method's result for these arguments."""
        found = {}
        for key, (name, *args) in wanted.items():
            value = getattr(self, name)
            found[key] = value(*args) if args else value
        return found

    def descend(self, parameter: str, gradient: Value | None) -> None:
        """Hand dF/dtheta of one parameter (None: zero) to the optimizer, whose step ends the inference step."""
        target = self.parameters[parameter]
        part = torch.zeros_like(target) if gradient is None or gradient[0] is None else gradient[0]
        target.grad = part if self.loss_scale == 1 else part / self.loss_scale
        self.stepped = True

    def end_step(self) -> None:
        """Take the parameter step if this inference step handed in gradients."""
        if self.stepped and self.optimizer_step is not None:
            self.optimizer_step()
            for parameter in self.parameters.values():
                parameter.grad = None
        self.stepped = False

    @property
    def records(self) -> bool:
        """Whether the energy is needed at every step."""
        return self.record_energies or getattr(self.rule, "tolerance", 0.0) > 0

    def settled(self) -> bool:
        """Whether the energy's relative change in the last step is below the rule's tolerance."""
        tolerance = getattr(self.rule, "tolerance", 0.0)
        if not tolerance or len(self.energies) < 2:
            return False
        before, now = self.energies[-2:]
        return abs(now - before) <= tolerance * abs(before)

    def check_finite(self, program: Program, state: State) -> None:
        """Raise if the energy is not finite.

        Raises:
            NonFiniteError: names the first vertex whose value, prediction or error is not finite.
        """
        if not (_has_finite_lengths(program, state) or math.isfinite(energy(program, self, state))):
            raise first_non_finite(program, state)


@lru_cache(maxsize=64)
def _gains(rule: Rule, levels: tuple[Any, ...], device: torch.device) -> torch.Tensor:
    run = Run(rule)

    def gain(level: Any) -> Any:
        if isinstance(level, tuple):
            return [gain(part) for part in level]
        return 0.0 if level is None else run.gain(level) if level else 1.0

    return torch.tensor(gain(levels), dtype=torch.float32, device=device)


def value_optimizer(rule: Rule) -> ValueOptimizer:
    """The optimizer of the values that a rule asks for; plain descent where it has no choice."""
    kind = getattr(rule, "optimizer", "sgd")
    if kind == "sgd":
        return ValueOptimizer("sgd", rule.step_size)
    return ValueOptimizer(kind, rule.step_size, rule.momentum, rule.betas, rule.epsilon)  # type: ignore[union-attr]


def _has_finite_lengths(program: Program, state: State) -> bool:
    """Whether the loss and the lengths of all errors are finite; then the energy is, which takes longer to compute."""
    lengths: torch.Tensor | float = 0.0
    for vertex in program.vertices:
        if vertex.moves:
            parts = state.get(("error", vertex.name)) or ()
            lengths = sum((length(part) for part in parts if part is not None), start=lengths)
        elif vertex.kind is Kind.LOSS and vertex.nodes:
            lengths = lengths + state["value", vertex.name][0]
    return math.isfinite(lengths)


def energy(program: Program, run: Run, state: State) -> float:
    """F = loss_scale * L + sum |e|^2 / 2 over the hidden vertices, at the present step."""
    value: torch.Tensor | float = 0.0
    for vertex in program.vertices:
        if vertex.moves:
            value = value + squared_norm(state.get(("error", vertex.name))) / 2
        elif vertex.kind is Kind.LOSS and vertex.nodes:
            value = value + run.loss_scale * state["value", vertex.name][0].double()
    return float(value)


def first_non_finite(program: Program, state: State) -> NonFiniteError:
    """The error for the first vertex, in feed-forward order, with a value, prediction or error that is not finite."""
    for vertex in program.vertices:
        for kind in ("value", "prediction", "error"):
            found = state.get((kind, vertex.name))
            parts = found.prediction if isinstance(found, Linearisation) else found or ()
            for part in parts:
                if isinstance(part, torch.Tensor) and part.is_floating_point() and not torch.isfinite(part).all():
                    return NonFiniteError(f"the {kind} of {vertex.name} is not finite", place(vertex))
    return NonFiniteError("the energy is not finite")
