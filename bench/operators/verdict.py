"""Whether a compiled case equals eager autograd: outputs, gradients, mutated buffers and random state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import pccompile
from bench.operators.cases import Case
from pccompile.errors import PCCompileError
from pccompile.modelstate import is_tensor_that_learns

__all__ = ["TOLERANCE", "Outcome", "Verdict", "judge"]

TOLERANCE = 1e-6  # of the norm of the difference over the norm of eager's tensor


class Verdict(IntEnum):
    """What a case came to; the larger decides for an entry of several cases."""

    NOT_APPLICABLE = 0
    EXACT = 1
    WITHIN_TOLERANCE = 2
    REFUSED = 3
    WRONG = 4


@dataclass(frozen=True)
class Outcome:
    """The verdict on one case.

    Attributes:
        difference: the largest relative difference of a tensor, where both could run.
        reason: why it is not exact.
    """

    verdict: Verdict
    difference: float = 0.0
    reason: str = ""


class NotApplicableError(Exception):
    """Eager autograd itself gives nothing to compare with."""


def judge(case: Case, compile: Callable[[nn.Module], nn.Module] = pccompile.compile) -> Outcome:
    """Run a case eagerly (twice, to see that it repeats) and compiled, from one seed, and compare all it leaves."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            expected, again = _run(case, _itself), _run(case, _itself)
        except NotApplicableError as error:
            return Outcome(Verdict.NOT_APPLICABLE, reason=str(error))
        except Exception as error:
            return Outcome(Verdict.NOT_APPLICABLE, reason=f"eager: {_told(error)}")
        if any(_difference(again[name], value) != 0 for name, value in expected.items()):
            return Outcome(Verdict.NOT_APPLICABLE, reason="eager: two runs from one seed differ")
        try:
            actual = _run(case, compile)
        except PCCompileError as error:
            return Outcome(Verdict.REFUSED, reason=f"{type(error).__name__}: {error.cause}")
        except Exception as error:
            return Outcome(Verdict.WRONG, reason=f"raised {_told(error)}")
    return _compare(expected, actual)


def _itself(model: nn.Module) -> nn.Module:
    return model


def _run(case: Case, compile: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    """All that one training step leaves behind, by name."""
    model, args, kwargs = case.build()
    torch.manual_seed(0)
    outputs = compile(model)(*args, **kwargs)
    flat = pytree.tree_leaves(outputs)
    left: dict[str, Any] = {f"output {index}": _detached(value) for index, value in enumerate(flat)}
    left["random state"] = torch.get_rng_state()
    left["number of outputs"] = len(flat)
    left["differentiable outputs"] = list(map(is_tensor_that_learns, flat))
    learned = list(map(_dense, filter(is_tensor_that_learns, pytree.tree_leaves(case.differentiable(outputs)))))
    if not learned:
        raise NotApplicableError("no output requires a gradient")
    torch.manual_seed(1)
    torch.autograd.backward(learned, [torch.randn_like(value) for value in learned])
    for name, value in _leaves(model, args, kwargs):
        left[f"{name} after"] = _detached(value)
        left[f"gradient of {name}"] = value.grad
    return left


def _dense(value: torch.Tensor) -> torch.Tensor:
    return value if value.layout is torch.strided else value.to_dense()


def _leaves(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    given = [(f"input{pytree.keystr(path)}", value) for path, value in pytree.tree_leaves_with_path((args, kwargs))]
    found = [*given, *model.named_parameters(), *model.named_buffers()]
    return [(name, value) for name, value in found if isinstance(value, torch.Tensor)]


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _compare(expected: dict[str, Any], actual: dict[str, Any]) -> Outcome:
    worst, where = 0.0, ""
    for name, value in expected.items():
        difference = _difference(actual.get(name), value)
        if not difference <= worst:
            worst, where = difference, name
    if worst == 0:
        return Outcome(Verdict.EXACT)
    if worst <= TOLERANCE:
        return Outcome(Verdict.WITHIN_TOLERANCE, worst, f"{where} differs by {worst:.1e}")
    return Outcome(Verdict.WRONG, worst, f"{where} differs by {worst:.1e}")


def _difference(actual: Any, expected: Any) -> float:
    """0 where bit-equal, |actual - expected| / |expected| where numbers differ, infinite where the kind does."""
    if not isinstance(actual, torch.Tensor) or not isinstance(expected, torch.Tensor):
        return 0.0 if type(actual) is type(expected) and actual == expected else torch.inf
    if (actual.shape, actual.dtype, actual.layout) != (expected.shape, expected.dtype, expected.layout):
        return torch.inf
    actual, expected = _dense(actual), _dense(expected)
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    if bool(same.all()):
        return 0.0
    wide = torch.complex128 if expected.is_complex() else torch.float64
    difference = torch.where(same, 0, actual.to(wide) - expected.to(wide)).norm()
    scale = torch.where(same & ~expected.isfinite(), 0, expected.to(wide)).norm()
    relative = float(difference / scale)
    return relative if relative == relative else torch.inf


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
