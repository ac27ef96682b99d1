"""Whether a loss is a mean or a sum over the batch, found by showing it the batch twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["averages_over_batch"]


def averages_over_batch(loss_fn: Callable[..., torch.Tensor], outputs: Any, targets: tuple[Any, ...]) -> bool:
    """True for a mean, False for a sum; True as well where the loss does not answer (it is zero, or refuses).

    Args:
        loss_fn: loss_fn(outputs, *targets) -> scalar.
        outputs: the model's outputs, any structure; tensors of the batch's length are repeated along dimension 0.
        targets: the targets, likewise.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not tensors:
        return True
    batch = tensors[0].shape[0]

    def twice(leaf: Any) -> Any:
        same = isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == batch
        return torch.cat([leaf, leaf]) if same else leaf

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            once = float(loss_fn(outputs, *targets))
            doubled = float(loss_fn(pytree.tree_map(twice, outputs), *pytree.tree_map(twice, targets)))
        except (RuntimeError, ValueError, TypeError, IndexError):
            return True
    is_sum = math.isclose(doubled, 2 * once, rel_tol=1e-3)
    return not is_sum or math.isclose(doubled, once, rel_tol=1e-3)
