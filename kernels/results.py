"""Where a kernel's results go: those asked for, made or given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["SweepResults", "Target", "only_asked", "result_for", "results_for"]

# To be added to; or the strides of one to be made; or not asked for.
Target: TypeAlias = Tensor | tuple[int, ...] | None


def result_for(target: Target, like: Tensor, shape: Sequence[int]) -> Tensor | None:
    """The tensor that a kernel writes, of another's dtype and device where it is made."""
    if target is None or isinstance(target, Tensor):
        return target
    return torch.empty_strided(shape, target, dtype=like.dtype, device=like.device)


class SweepResults(NamedTuple):
    """What an error sweep writes, in the order in which the launchers take it.

    Attributes:
        parent_error, weight_gradient, bias_gradient: the tensors, or None for what is left out.
        accumulate_parent, accumulate_weight, accumulate_bias: whether each is added to, rather than overwritten.
    """

    parent_error: Tensor | None
    weight_gradient: Tensor | None
    bias_gradient: Tensor | None
    accumulate_parent: bool = False
    accumulate_weight: bool = False
    accumulate_bias: bool = False

    @property
    def constants(self) -> dict[str, bool]:
        """The kernels' constants that say which there are, and what becomes of what is in them."""
        return {
            "PARENT_ERROR": self.parent_error is not None,
            "WEIGHT_GRADIENT": self.weight_gradient is not None,
            "BIAS_GRADIENT": self.bias_gradient is not None,
            "ACCUMULATE_PARENT": self.accumulate_parent,
            "ACCUMULATE_WEIGHT": self.accumulate_weight,
            "ACCUMULATE_BIAS": self.accumulate_bias,
        }

    def pointers(self, instead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three as kernels take them: another tensor for what is left out, which is never read or written."""
        parent, weight_gradient, bias_gradient = (instead if tensor is None else tensor for tensor in self[:3])
        return parent, weight_gradient, bias_gradient


def results_for(
    parent: Target, weight_gradient: Target, bias_gradient: Target, like: Tensor, shapes: Sequence[Sequence[int]]
) -> SweepResults:
    """What an error sweep writes, of another tensor's dtype and device where it is made.

    Args:
        parent, weight_gradient, bias_gradient: the tensor to add to, or the strides of one to make, or None.
        like: the other tensor.
        shapes: of the three.
    """
    return SweepResults(
        result_for(parent, like, shapes[0]),
        result_for(weight_gradient, like, shapes[1]),
        result_for(bias_gradient, like, shapes[2]),
        isinstance(parent, Tensor),
        isinstance(weight_gradient, Tensor),
        isinstance(bias_gradient, Tensor),
    )


def only_asked(outputs: Sequence[Tensor], asked: Sequence[bool]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """An error sweep's three results, which an operator returns as a tensor each; None for what was not asked for."""
    parent, weight_gradient, bias_gradient = (
        output if wanted else None for output, wanted in zip(outputs, asked, strict=True)
    )
    return parent, weight_gradient, bias_gradient
