"""batch_norm for callers that run it often and know what they pass: one normalisation or two, and what is around them.

A residual block ends in act(normalised + addend), where the addend may be normalised itself; a network of such blocks
in an average over positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from pccompile.kernels.batch_norm.channels import three_dimensional
from pccompile.kernels.batch_norm.error import ErrorBranch, error_branch, launch_batch_norm_error
from pccompile.kernels.batch_norm.predict import Branch, launch_batch_norm_predict
from pccompile.kernels.results import Target, result_for, results_for

__all__ = ["Given", "Swept", "predict_branches", "sweep_branches"]

# x, weight, bias, running mean and variance, int64 number of batches, momentum, eps
Given: TypeAlias = tuple[
    Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, float, float
]
# x, weight, mean, rstd; where the parent's error, dw and db go; gain
Swept: TypeAlias = tuple[Tensor, Tensor | None, Tensor, Tensor, Target, Target, Target, float]


def predict_branches(
    branches: Sequence[Given],
    addend: Tensor | None,
    activation: str,
    negative_slope: float,
    strides: Sequence[int],
    pooled: bool,
) -> tuple[Tensor | None, ...]:
    """act(a normalised x + what is added to it), which is a tensor or another normalised x, in one launch.

    Args:
        branches: one normalisation or two, of x (batch, channels, ...), not empty.
        addend: of x's shape, or None.
        activation, negative_slope: as for `launch_batch_norm_predict`.
        strides: of the output; its dimensions after the channels are one, as x's and the addend's are.
        pooled: whether to return the output's mean over these dimensions as well, (batch, channels, 1, ...).

    Returns:
        The output and its mean; then of each branch the mean, one over the deviation, the moved running mean and
        variance, and the number of batches.
    """
    x = branches[0][0]
    output = torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)
    averages = x.new_empty((*x.shape[:2], *[1] * (x.dim() - 2))) if pooled else None
    made = [_branch(*given) for given in branches]
    launch_batch_norm_predict(
        made[0],
        three_dimensional(output),
        other=made[1] if len(made) > 1 else None,
        addend=None if addend is None else three_dimensional(addend),
        pooled=None if averages is None else averages.flatten(1),
        activation=activation,
        negative_slope=negative_slope,
    )
    kept = [(each.mean, each.rstd, each.new_mean, each.new_var, each.new_batches) for each in made]
    return (output, averages, *(tensor for tensors in kept for tensor in tensors))


def _branch(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float,
    eps: float,
) -> Branch:
    mean, rstd = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))
    moved = (None if old is None else torch.empty_like(old) for old in (running_mean, running_var, batches))
    new_mean, new_var, new_batches = moved
    read = three_dimensional(x), weight, bias, running_mean, running_var
    return Branch(*read, mean, rstd, new_mean, new_var, momentum, eps, batches, new_batches)


def sweep_branches(
    error: Tensor,
    error_factor: float,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    d: Target,
    branches: Sequence[Swept],
) -> tuple[Tensor | None, ...]:
    """The error sweep of what `predict_branches` computes, in one launch.

    Args:
        error: (batch, channels, ...), with respect to the output, but for a factor.
        error_factor: that factor.
        residual: what act' is read from, or None for the identity.
        activation, negative_slope: as there.
        d: the strides of the error with respect to the sum, or None where it is not asked for.
        branches: of each normalisation what it reads, and for each of its results the tensor to add to, or the strides
            of one to make, or None; the dimensions of the parent's error after the channels are one.

    Returns:
        d; then of each branch the parent's error, dw and db.
    """
    before = result_for(d, error, error.shape)
    made = [_error_branch(error, *swept) for swept in branches]
    launch_batch_norm_error(
        three_dimensional(error),
        made[0][0],
        other=made[1][0] if len(made) > 1 else None,
        residual=None if residual is None else three_dimensional(residual),
        d=None if before is None else three_dimensional(before),
        error_factor=error_factor,
        activation=activation,
        negative_slope=negative_slope,
    )
    return (before, *(tensor for _, results in made for tensor in results))


def _error_branch(
    error: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    parent: Target,
    weight_gradient: Target,
    bias_gradient: Target,
    gain: float,
) -> tuple[ErrorBranch, tuple[Tensor | None, ...]]:
    shapes = (x.shape, x.shape[1:2], x.shape[1:2])
    results = results_for(parent, weight_gradient, bias_gradient, error, shapes)
    return error_branch(x, weight, mean, rstd, results, gain), results[:3]
