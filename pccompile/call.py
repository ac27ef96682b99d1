"""One call of a model, flattened."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

__all__ = ["Call", "Loss", "kind_of"]

Loss = Callable[..., torch.Tensor]
_kind_of_strided = attrgetter("shape", "dtype", "device", "requires_grad")


def kind_of(value: Any) -> Hashable:
    """Shape, dtype, device, requires_grad and strides (or layout) of a tensor; type and text of anything else."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__, repr(value)
    strided = value.layout is torch.strided
    return (*_kind_of_strided(value), value.stride() if strided else str(value.layout))


class Call:
    """What a model, and a loss after it, is called with.

    Attributes:
        model: the model.
        loss_fn: called as loss_fn(outputs, *targets); None leaves the loss outside.
        args, kwargs, targets: the arguments.
        flat: the tensors and other leaves of (args, kwargs by name, targets): what a capture's leaves index.
        structure: how they are nested; equal for calls whose leaves mean the same.
        kinds: of each leaf, shape, strides, dtype, device and requires_grad of a tensor; anything else itself.
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
