"""The updates of a run on symbols: the run, the optimizer of the values, and sums in as few nodes as they take."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from pccompile.derivatives import Value
from pccompile.lowering.symbols import Space, Symbol
from pccompile.updates import ValueOptimizer, adam, infer, relax, total

__all__ = ["SymbolicOptimizer", "SymbolicRun", "infer_on_symbols", "relax_on_symbols"]


class Writing(Protocol):
    """What is being written: the space of its symbols, its optimizer, and the numbers that a run provides."""

    space: Space
    optimizer: SymbolicOptimizer

    def scalar(self, name: str, *how: Any) -> Symbol:
        """A number that the run provides."""


class SymbolicRun:
    """Stands for `backends.run.Run`."""

    random_states = None

    def __init__(self, writing: Writing, loss_error: Value | None) -> None:
        self.writing, self.loss_error = writing, loss_error

    @property
    def step_size(self) -> Symbol:
        return self.writing.scalar("step_size", "step_size")

    @property
    def optimizer(self) -> SymbolicOptimizer:
        return self.writing.optimizer

    @property
    def learn_factor(self) -> Symbol:
        return self.writing.scalar("learn_factor", "learn_factor")

    def gain(self, level: int, sign: float = 1.0) -> Symbol:
        return self.writing.scalar(f"gain_{level}", "gain", level, sign)

    def descend(self, parameter: str, gradient: Value | None) -> None:
        writer = self.writing.space.writer
        symbol = None if gradient is None else gradient[0]
        if symbol is not None:
            writer.export(symbol)
        writer.descents.append((parameter, None if symbol is None else symbol.key))


class SymbolicOptimizer:
    """Stands for `updates.ValueOptimizer`: the same steps with the step size as an input of the graph."""

    def __init__(self, writing: Writing, optimizer: ValueOptimizer) -> None:
        self.writing, self.rule = writing, optimizer

    def start(self) -> tuple[Any, ...] | None:
        """The moments of a value before the first step."""
        return {"sgd": None, "momentum": (None,), "adam": (None, None, 0)}[self.rule.kind]

    def step(self, value: Symbol, direction: Symbol | None, moment: Any) -> tuple[Symbol, Any]:
        """One step; see `updates.ValueOptimizer.step`."""
        emit, eta = self.writing.space.emit, self.writing.scalar("step_size", "step_size")
        if self.rule.kind == "sgd":
            return (value if direction is None else emit(torch.add, (value, direction), {"alpha": eta})), None
        first, second, count = (*(moment or self.start() or ()), None, None)[:3]
        if direction is None and first is None:
            return value, (None,) if self.rule.kind == "momentum" else (None, None, count + 1)
        if direction is None:
            direction = emit(torch.zeros_like, (value,))
        if self.rule.kind == "momentum":
            first = direction if first is None else emit(torch.add, (direction, first), {"alpha": self.rule.momentum})
            return emit(torch.add, (value, first), {"alpha": eta}), (first,)
        moment = first, second, count
        return adam(self.rule, eta, value, direction, moment, lambda symbol: emit(torch.sqrt, (symbol,)))


def infer_on_symbols(
    optimizer: SymbolicOptimizer, value: Value, error: Value | None, moment: Any, *contributions: Value | None
) -> tuple[Value, Any]:
    """`updates.infer` with one subtraction for -e + contributions."""
    incoming = total(contributions)
    if error is None or incoming is None:
        return infer(optimizer, value, error, moment, *contributions)  # type: ignore[arg-type]
    moved = [
        optimizer.step(
            part,
            pulled if own is None else -own if pulled is None else pulled - own,
            None if moment is None else moment[index],
        )
        for index, (part, own, pulled) in enumerate(zip(value, error, incoming, strict=True))
    ]
    return tuple(after for after, _ in moved), tuple(state for _, state in moved)


def relax_on_symbols(error: Value | None, step_size: Symbol, *contributions: Value | None) -> Value | None:
    """`updates.relax` with a step size that the run provides."""
    incoming = relax(None, 1.0, *contributions)
    if incoming is None or error is None:
        parts = error if incoming is None else incoming
        factor = 1 - step_size if incoming is None else step_size
        return None if parts is None else tuple(None if part is None else factor * part for part in parts)
    return tuple(_mix(before, after, step_size) for before, after in zip(error, incoming, strict=True))


def _mix(before: Symbol | None, after: Symbol | None, step_size: Symbol) -> Symbol | None:
    if before is None or after is None:
        return None if before is after else (1 - step_size) * before if before is not None else step_size * after
    return before.space.emit(torch.lerp, (before, after, step_size))
