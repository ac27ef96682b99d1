"""Where a kernel's result goes, for callers that run a kernel often and know what they pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Target", "result_for"]

Target: TypeAlias = (
    Tensor | tuple[int, ...] | None
)  # to be added to; or the strides of one to be made; or not asked for


def result_for(target: Target, like: Tensor, shape: Sequence[int]) -> Tensor | None:
    """The tensor that a kernel writes, of another's dtype and device where it is made."""
    if target is None or isinstance(target, Tensor):
        return target
    return torch.empty_strided(shape, target, dtype=like.dtype, device=like.device)
