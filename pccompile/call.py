"""One call of a model, flattened."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

__all__ = ["Call", "Loss", "flattened", "guard_of", "kind_of"]

Loss = Callable[..., torch.Tensor]
Guard = Callable[..., bool]

_TensorGuards = torch._C._dynamo.guards.TensorGuards  # what guards the code that Dynamo compiles


def kind_of(value: Any) -> Hashable:
    """Shape, strides (or layout), dtype, device and requires_grad of a tensor; type and text of anything else."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__, repr(value)
    strides = value.stride() if value.layout is torch.strided else str(value.layout)
    return value.shape, strides, value.dtype, value.device, value.requires_grad


def guard_of(tensors: Sequence[Any]) -> Guard:
    """A function that tells, of as many values, whether they are tensors of the same kinds as these, in one call.

    It may say no needlessly (in another dispatch state, say); always, unless all of these are plain tensors.
    """
    if not all(isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided for tensor in tensors):
        return _never
    sizes, strides = [list(tensor.shape) for tensor in tensors], [list(tensor.stride()) for tensor in tensors]
    check: Guard = _TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    return check


def _never(*values: Any) -> bool:
    return False


class Call:
    """What a model, and a loss after it, is called with.

    Attributes:
        model: the model.
        loss_fn: called as loss_fn(outputs, *targets); None leaves the loss outside.
        args, kwargs, targets: the arguments; kwargs are ordered by name.
        flat: the tensors and other leaves of (args, kwargs by name, targets): what a capture's leaves index.
        structure: how they are nested; equal for calls whose leaves mean the same.
    """

    __slots__ = ("_kinds", "args", "flat", "kwargs", "loss_fn", "model", "structure", "targets")

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        targets: tuple[Any, ...] = (),
    ) -> None:
        self.model, self.loss_fn, self.args, self.targets = model, loss_fn, args, targets
        self.kwargs = dict(sorted(kwargs.items()))
        self.flat, self.structure = flattened(args, kwargs, targets)
        self._kinds: tuple[Hashable, ...] | None = None

    @property
    def kinds(self) -> tuple[Hashable, ...]:
        """`kind_of` each leaf."""
        if self._kinds is None:
            self._kinds = tuple([kind_of(leaf) for leaf in self.flat])
        return self._kinds

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
        """(args, kwargs, targets)."""
        return self.args, self.kwargs, self.targets

    def given(self, flat: list[Any]) -> Call:
        """The same call with other leaves."""
        inputs = pytree.tree_unflatten(flat, pytree.tree_structure(self.inputs))
        return Call(self.model, self.loss_fn, *inputs)

    def run(self) -> Any:
        """The model's own outputs; the loss where there is one."""
        outputs = self.model(*self.args, **self.kwargs)
        return outputs if self.loss_fn is None else self.loss_fn(outputs, *self.targets)


def flattened(args: tuple[Any, ...], kwargs: dict[str, Any], targets: tuple[Any, ...]) -> tuple[list[Any], Hashable]:
    """(leaves, structure) of a call's arguments and targets; see `Call`."""
    flat = [*args, *targets]
    if not kwargs and set(map(type, flat)) == {torch.Tensor}:  # the usual call, without pytree's time
        return flat, (len(args), len(targets))
    return pytree.tree_flatten((args, dict(sorted(kwargs.items())), targets))  # type: ignore[no-any-return]
