"""What the operators of recurrent layers share: their results and launches, and how they are registered."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef
from torch.utils.flop_counter import register_flop_formula

from pccompile.kernels.arguments import refusal
from pccompile.kernels.operators import custom_operator, has_data
from pccompile.kernels.recurrence_checks import check_error, check_recurrence
from pccompile.kernels.recurrences import Learned

__all__ = [
    "errors_over_time",
    "predict_states",
    "register_recurrence",
    "sweep_states",
]


def predict_states(
    launch: Callable[..., None],
    drive: Tensor,
    parameters: Sequence[Tensor | None],
    first: Sequence[Tensor],
    options: Sequence[str],
    *,
    keeps_gates: bool,
) -> list[Tensor]:
    """Launch a recurrence where its inputs have data.

    Args:
        launch: takes the drive, parameters, first states, results and options.
        drive: (steps, batch, gates units).
        parameters: weight_hidden, and what else there is.
        first: (batch, units) each, states before the first step.
        options: what the launch takes beside tensors.
        keeps_gates: whether there is a result (steps, batch, 4 units).

    Returns:
        Of each state (steps + 1, batch, units), and the gates.
    """
    (steps, batch), units = drive.shape[:2], first[0].shape[1]
    results = [drive.new_empty(steps + 1, batch, units) for _ in first]
    if keeps_gates:
        results.append(drive.new_empty(steps, batch, 4 * units))
    if has_data(drive):
        if steps == 0:
            _without_steps(results[: len(first)], first)
        else:
            launch(drive, *parameters, *first, *results, *options)
    return results


def errors_over_time(gates: int, error: Tensor) -> Tensor:
    """A place for errors (steps, batch, gates units), where those of the hidden states are (steps, batch, units)."""
    steps, batch, units = error.shape
    return error.new_empty(steps, batch, gates * units)


def sweep_states(
    launch: Callable[..., None],
    error: Tensor,
    last: Sequence[Tensor | None],
    weight: Tensor,
    kept: Sequence[Tensor],
    errors: Sequence[Tensor],
    options: Sequence[str],
    learned: Learned | None = None,
) -> list[Tensor]:
    """Launch a recurrence's error where its inputs have data.

    Args:
        launch: takes the error, last errors, the weight, what was kept, targets, options and `learned`.
        error: (steps, batch, units).
        last: (batch, units) each, added to the errors of the last states; None for zero.
        weight: (gates units, units).
        kept: from the prediction.
        errors: places for those over time.
        options: what the launch takes beside tensors.
        learned: places for what gradients with gains read.

    Returns:
        The errors of the first states, (batch, units) each.
    """
    # Sums over steps, so in float32.
    first = [error.new_empty(error.shape[1:], dtype=torch.float32) for _ in last]
    if has_data(error):
        if error.shape[0] == 0:
            _without_steps(first, last)
        else:
            read = (each.contiguous() for each in kept)
            launch(error, *last, weight, *read, *errors, *first, *options, learned=learned)
    # A float32 tensor is itself what .to returns: it was made here.
    return [each.to(error.dtype) for each in first]


def _without_steps(targets: Sequence[Tensor], given: Sequence[Tensor | None]) -> None:
    """Where there is no time step the first states are the last, and so are their errors; None stands for zero."""
    for target, source in zip(targets, given, strict=True):
        target.zero_() if source is None else target.copy_(source)


# The operators --------------------------------------------------------------------------------------------------------


def register_recurrence(
    name: str,
    layer: str,
    gates: int,
    predict: Callable[..., Any],
    sweep: Callable[..., Any],
    sweep_learned: Callable[..., Any],
) -> CustomOpDef:
    """Make functions the operators pccompile::NAME_recurrence, ..._error and ..._learned_error, behind their checks.

    Args:
        name: "lstm".
        layer: "an LSTM", for the refusal of second derivatives.
        gates: how many times the units a gate's product is wide.
        predict: takes what `check_recurrence` does.
        sweep, sweep_learned: take what `check_error` does, the second with gains.

    Returns:
        The first operator; its derivative is not registered yet.
    """
    check = partial(check_error, f"{name}_error", gates)
    for suffix, function in (("error", sweep), ("learned_error", sweep_learned)):
        swept = _checked_operator(f"{name}_recurrence_{suffix}", check, function)
        swept.register_autograd(refusal(f"the error sweep of {layer} was differentiated"))
    return _checked_operator(f"{name}_recurrence", partial(check_recurrence, f"{name}_recurrence", gates), predict)


def _checked_operator(name: str, check: Callable[..., None], function: Callable[..., Any]) -> CustomOpDef:
    """The operator of that name: a function once its arguments, by name, are checked."""
    names = tuple(signature(function).parameters)

    @wraps(function)
    def checked(*arguments: Any) -> Any:
        check(**dict(zip(names, arguments, strict=True)))
        return function(*arguments)

    registered = custom_operator(f"pccompile::{name}")(checked)
    _register_operations(getattr(torch.ops.pccompile, name), names.index("weight"))
    return registered


def _register_operations(operator: Any, weight: int) -> None:
    """Tell torch's counter the operations of a recurrence, or of its error: a product with U in every time step.

    Args:
        operator: takes (steps, batch, ...) first.
        weight: the place of U among its arguments.
    """

    @register_flop_formula(operator)
    def operations(first: Sequence[int], *shapes: Any, **_: Any) -> int:
        steps, batch = first[:2]
        gates, units = shapes[weight - 1]
        return 2 * int(steps * batch * gates * units)
