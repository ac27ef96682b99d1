"""The updates on tensors. Value, error, contribution: each is a tuple with one tensor (or None) per component."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from pccompile.derivatives import Value

__all__ = [
    "ValueOptimizer",
    "adam",
    "compare",
    "infer",
    "learn",
    "length",
    "negative",
    "relax",
    "scaled",
    "squared_norm",
    "total",
]


_HALVES = (torch.float16, torch.bfloat16)


def total(contributions: Iterable[Value | None]) -> Value | None:
    """Sum of contributions, component by component, in the order given; None if there are none."""
    result: list[Any] | None = None
    for contribution in contributions:
        if contribution is None:
            continue
        if result is None:
            result = list(contribution)
            continue
        for index, part in enumerate(contribution):
            if part is not None:
                result[index] = part if result[index] is None else result[index] + part
    return None if result is None else tuple(result)


def compare(value: Value, prediction: Value, free: tuple[bool, ...]) -> Value:
    """e = v - mu of the free components; None (zero) where value and prediction are the same tensor."""
    return tuple(
        v - mu if is_free and v is not mu else None for v, mu, is_free in zip(value, prediction, free, strict=True)
    )


def negative(value: Value | None) -> Value | None:
    """-value, component by component; None stands for zero."""
    return None if value is None else tuple(None if part is None else -part for part in value)


def scaled(factor: Any, value: Value | None) -> Value | None:
    """factor * value, component by component; None stands for zero."""
    return None if value is None else tuple(None if part is None else factor * part for part in value)


def relax(error: Value | None, step_size: float, *contributions: Value | None) -> Value | None:
    """e <- (1 - eta) e + eta * sum of contributions; None stands for zero."""
    incoming = total(contributions)
    if step_size == 1 or (error is None and incoming is None):
        return incoming
    width = len(error if error is not None else incoming or ())
    old = error if error is not None else (None,) * width
    new = incoming if incoming is not None else (None,) * width
    return tuple(_mix(before, after, step_size) for before, after in zip(old, new, strict=True))


def learn(gradient: Value | None, factor: float, contribution: Value | None) -> Value | None:
    """gradient + factor * contribution; None stands for zero."""
    if contribution is None:
        return gradient
    scaled = contribution if factor == 1 else tuple(None if c is None else factor * c for c in contribution)
    return total([gradient, scaled])


@dataclass(frozen=True)
class ValueOptimizer:
    """The optimizer of the values: one step along the descent direction g = -dF/dv.

    kind "sgd": v + eta g; "momentum": m <- momentum m + g, v + eta m; "adam": Kingma and Ba 2015, algorithm 1.
    """

    kind: str
    step_size: float
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def step(self, value: torch.Tensor, direction: torch.Tensor | None, moment: Any) -> tuple[torch.Tensor, Any]:
        """The value after the step, and the optimizer's state. A direction of None is zero, and counts as a step."""
        if direction is None and (moment is None or moment[0] is None):
            return value, (None, None, 1 if moment is None else moment[2] + 1)
        direction = torch.zeros_like(value) if direction is None else direction
        first, second, count = moment or (None, None, 0)
        if self.kind == "sgd":
            return torch.add(value, direction, alpha=self.step_size), None
        if self.kind == "momentum":
            first = direction if first is None else torch.add(direction, first, alpha=self.momentum)
            return torch.add(value, first, alpha=self.step_size), (first, None, count + 1)
        return adam(self, self.step_size, value, direction, (first, second, count), torch.sqrt)


def adam(
    optimizer: ValueOptimizer,
    step_size: Any,
    value: Any,
    direction: Any,
    moment: tuple[Any, Any, Any],
    square_root: Callable[[Any], Any],
) -> tuple[Any, tuple[Any, Any, Any]]:
    """Adam's step and its state (both moments, None before the first step; steps), on whatever has arithmetic."""
    first, second, count = moment
    b1, b2 = optimizer.betas
    first = (1 - b1) * direction if first is None else b1 * first + (1 - b1) * direction
    second = (1 - b2) * direction**2 if second is None else b2 * second + (1 - b2) * direction**2
    corrected = first / (1 - b1 ** (count + 1))
    scale = square_root(second / (1 - b2 ** (count + 1))) + optimizer.epsilon
    return value + step_size * corrected / scale, (first, second, count + 1)


def infer(
    optimizer: ValueOptimizer, value: Value, error: Value | None, moment: Any, *contributions: Value | None
) -> tuple[Value, Any]:
    """One step of the value optimizer along -e + sum of contributions; components without either stay."""
    incoming = total(contributions)
    moved, moments = [], []
    for index, part in enumerate(value):
        own = None if error is None or error[index] is None else -error[index]
        pulled = None if incoming is None else incoming[index]
        direction = own if pulled is None else pulled if own is None else own + pulled
        after, state = optimizer.step(part, direction, None if moment is None else moment[index])
        moved.append(after)
        moments.append(state)
    return tuple(moved), tuple(moments)


def squared_norm(error: Value | None) -> torch.Tensor | float:
    """|e|^2 over all components, accumulated in at least float32."""
    parts = [part for part in error or () if part is not None]
    wide = [part.float() if part.dtype in _HALVES else part for part in parts]
    return sum(((part.abs() ** 2).sum() for part in wide), start=0.0)


def length(part: torch.Tensor) -> torch.Tensor:
    """|e| of one component in one pass, as rounded as that makes it."""
    return torch.linalg.vector_norm(part, dtype=torch.float32 if part.dtype in _HALVES else None)


def _mix(before: torch.Tensor | None, after: torch.Tensor | None, step_size: float) -> torch.Tensor | None:
    if before is None:
        return None if after is None else step_size * after
    if after is None:
        return (1 - step_size) * before
    return torch.lerp(before, after, step_size)
