"""Nothing is timed before its gradients are right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bench.steps.models import TOLERANCE
from bench.steps.task import Gradients

__all__ = ["Agreement", "compare"]

FLOOR = 1e-5  # of all gradients together: what a gradient that ought to be zero may be


@dataclass(frozen=True)
class Agreement:
    """How gradients compare with their reference.

    Attributes:
        reference: the rule whose reference it is.
        relative_error: |g - r| / |r| over all parameters together.
        bit_equal: every bit of every gradient.
        wrong: names of parameters whose gradient is beyond the tolerance, is missing, or is not finite.
    """

    reference: str
    relative_error: float
    bit_equal: bool
    wrong: tuple[str, ...] = ()


def compare(found: Gradients, expected: Gradients, reference: str, tolerance: float = TOLERANCE) -> Agreement:
    """Hold each gradient to its reference.

    Args:
        found: what is compared.
        expected: what is right.
        reference: the rule whose reference it is.
        tolerance: of each gradient's length.
    """
    scale = math.hypot(*(_norm(gradient) for gradient in expected.values()))
    differences: list[float] = []
    wrong = [name for name in found if name not in expected]
    equal = not wrong
    for name, right in expected.items():
        gradient = found.get(name)
        if gradient is None or gradient.shape != right.shape:
            difference, equal = math.inf, False
        else:
            difference = _norm(gradient.double() - right.double())
            equal = equal and torch.equal(gradient, right)
        differences.append(difference)
        if not difference <= tolerance * _norm(right) + FLOOR * scale:  # not <=: true of NaN as well
            wrong.append(name)
    error = math.hypot(*differences)
    return Agreement(reference, error / scale if scale else error, equal, tuple(wrong))


def _norm(tensor: torch.Tensor) -> float:
    return float(tensor.double().norm())
