"""How far a program's gradient is from backpropagation's, parameter by parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pccompile.errors import UsageError
from pccompile.ir.text import aligned
from pccompile.module import PCModule, as_arguments, loss_among

__all__ = ["Report", "Row", "check"]


@dataclass(frozen=True)
class Row:
    """One parameter: |g - g_autograd| / |g_autograd|, the angle between the two in radians, and bit-equality."""

    name: str
    relative_error: float
    angle: float
    bit_equal: bool


@dataclass(frozen=True)
class Report:
    """The divergence of a program from autograd; prints as a table.

    Attributes:
        rows: one per parameter that autograd gives a gradient.
        relative_error: over all parameters together.
    """

    rows: tuple[Row, ...]
    relative_error: float

    @property
    def max_relative_error(self) -> float:
        """The largest relative error of a parameter."""
        return max((row.relative_error for row in self.rows), default=0.0)

    @property
    def max_angle(self) -> float:
        """The largest angle of a parameter, in radians."""
        return max((row.angle for row in self.rows), default=0.0)

    @property
    def bit_equal(self) -> bool:
        """Whether every gradient equals autograd's bit for bit."""
        return all(row.bit_equal for row in self.rows)

    def __str__(self) -> str:
        header = ("parameter", "relative error", "angle (rad)", "bit-equal")
        cells = [
            (r.name, f"{r.relative_error:.3e}", f"{r.angle:.3e}", "yes" if r.bit_equal else "no") for r in self.rows
        ]
        total = ("all", f"{self.relative_error:.3e}", f"{self.max_angle:.3e}", "yes" if self.bit_equal else "no")
        return "\n".join(aligned([header, *cells, total]))


def check(pc: PCModule, inputs: Any, target: Any = None, loss_fn: Callable[..., torch.Tensor] | None = None) -> Report:
    """Compare the program's gradient with autograd's on one batch.

    Both run from the same random state; parameters, buffers, gradients and the random state are left as they were.

    Args:
        pc: the compiled module.
        inputs, target: as for `PCModule.loss`.
        loss_fn: the loss, where it was not given to `compile` (for the rules that take it from outside).

    Raises:
        UsageError: there is no loss, or the rule changes the parameters while it infers.
    """
    if pc.rule.name == "Incremental":
        raise UsageError(
            "the incremental rule changes the parameters while it infers, so it has no gradient to compare",
            cure="check the same program under Strict",
        )
    args, kwargs = as_arguments(inputs)
    outer = loss_fn or pc.loss_fn
    targets = target if isinstance(target, tuple) else () if target is None else (target,)
    parameters = {name: p for name, p in pc.named_parameters() if p.requires_grad}

    def reference() -> torch.Tensor:
        outputs = pc.model(*args, **kwargs)
        return outer(outputs, *targets) if outer is not None else loss_among(outputs)

    def program() -> torch.Tensor:
        if loss_fn is not None and pc.loss_fn is None:
            value: torch.Tensor = loss_fn(pc(*args, **kwargs), *targets)
            return value
        return pc.loss(inputs, target)

    expected = _gradients(pc, reference, parameters)
    actual = _gradients(pc, program, parameters)
    rows = tuple(_row(name, actual[name], g) for name, g in expected.items() if g is not None)
    difference = math.hypot(*(r.relative_error * _norm(expected[r.name]) for r in rows)) if rows else 0.0
    scale = math.hypot(*(_norm(expected[r.name]) for r in rows)) if rows else 0.0
    return Report(rows, difference / scale if scale else difference)


def _gradients(
    pc: PCModule, loss: Callable[[], torch.Tensor], parameters: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor | None]:
    """Gradients by parameter name; buffers and the random state are put back."""
    buffers = {name: buffer.clone() for name, buffer in pc.named_buffers()}
    devices = sorted({p.device.index for p in parameters.values() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            found = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
    finally:
        with torch.no_grad():
            for name, buffer in pc.named_buffers():
                buffer.copy_(buffers[name])
    return dict(zip(parameters, found, strict=True))


def _row(name: str, actual: torch.Tensor | None, expected: torch.Tensor | None) -> Row:
    assert expected is not None
    if actual is None:
        actual = torch.zeros_like(expected)
    a, b = actual.double().flatten(), expected.double().flatten()
    norm = float(b.norm())
    difference = float((a - b).norm())
    error = difference / norm if norm else (0.0 if difference == 0 else math.inf)
    return Row(name, error, _angle(a, b), torch.equal(actual, expected))


def _angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """The angle between two vectors by Kahan's formula, accurate for small angles; 0 where one of them is zero."""
    length_a, length_b = a.norm(), b.norm()
    if not length_a or not length_b:
        return 0.0
    u, v = a / length_a, b / length_b
    return float(2 * torch.atan2((u - v).norm(), (u + v).norm()))


def _norm(tensor: torch.Tensor | None) -> float:
    return 0.0 if tensor is None else float(tensor.double().norm())
