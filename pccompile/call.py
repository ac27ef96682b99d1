"""One call of a model, flattened."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

__all__ = ["Call", "Loss", "kind_of"]

Loss = Callable[..., torch.Tensor]


def kind_of(value: Any) -> Hashable:
    """Shape, strides (or layout), dtype, device and requires_grad of a tensor; type and text of anything else."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__, repr(value)
    strides = value.stride() if value.layout is torch.strided else str(value.layout)
    return value.shape, strides, value.dtype, value.device, value.requires_grad


class Call:
    """What a model, and a loss after it, is called with.

    Attributes:
        model: the model.
        loss_fn: called as loss_fn(outputs, *targets); None leaves the loss outside.
        args, kwargs, targets: the arguments.
        flat: the tensors and other leaves of (args, kwargs by name, targets): what a capture's leaves index.
        structure: how they are nested; equal for calls whose leaves mean the same.
        kinds: `kind_of` each leaf.
    """

    __slots__ = ("args", "flat", "kinds", "kwargs", "loss_fn", "model", "structure", "targets")

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        targets: tuple[Any, ...] = (),
    ) -> None:
        self.model, self.loss_fn, self.args, self.kwargs, self.targets = model, loss_fn, args, kwargs, targets
        self.flat, self.structure = _flattened(args, kwargs, targets)
        self.kinds: tuple[Hashable, ...] = tuple([kind_of(leaf) for leaf in self.flat])

    def rebuilt(self, flat: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
        """(args, kwargs, targets) with other leaves."""
        spec = pytree.tree_structure((self.args, dict(sorted(self.kwargs.items())), self.targets))
        found: tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]] = pytree.tree_unflatten(flat, spec)
        return found


def _flattened(args: tuple[Any, ...], kwargs: dict[str, Any], targets: tuple[Any, ...]) -> tuple[list[Any], Hashable]:
    flat = [*args, *targets]
    if not kwargs and set(map(type, flat)) == {torch.Tensor}:  # the usual call, without pytree's time
        return flat, (len(args), len(targets))
    return pytree.tree_flatten((args, dict(sorted(kwargs.items())), targets))  # type: ignore[no-any-return]
