"""What of a model a captured program depends on, and whether it is still so: the check that runs at every call."""

from __future__ import annotations

from collections.abc import Hashable
from operator import is_
from typing import Any

import torch
from torch import nn

from pccompile.capture.reads import (
    dictionaries_of,
    is_settled,
    modules_of,
    names_read,
    python_key,
    tensors_key,
    values_read,
)

__all__ = ["ModelState"]


class ModelState:
    """Modes, parameters, buffers and Python values of a model (and its loss) at one moment; equal states capture alike.

    Building one reads all of the model's code; `holds` compares objects by identity, which takes microseconds a module.

    Attributes:
        modes: training or evaluation, of each of `modules_of(model, loss_fn)`.
        tensors: dtype, device, shape, requires_grad and ties of every parameter and buffer.
        python: attributes, hooks, globals and closures that the forward may read.
        learns: whether some parameter or buffer requires a gradient.
    """

    def __init__(self, model: nn.Module, loss_fn: Any) -> None:
        self.model, self.loss_fn = model, loss_fn
        modules = modules_of(model, loss_fn)
        self.modes: tuple[bool, ...] = tuple(module.training for module in modules)
        self.tensors: tuple[Hashable, ...] = tuple(tensors_key(model, loss_fn).values())
        self.python: tuple[Hashable, ...] = python_key(model, loss_fn)
        self._hash = hash((self.modes, self.tensors, self.python))
        dictionaries = dictionaries_of(modules)
        self._empty = [d for d in dictionaries if not d]
        self._dictionaries = [(d, list(d), list(d.values())) for d in dictionaries if d]
        self._names = [(name, name.get()) for name in names_read(model, loss_fn)]
        self._tensors = [
            (t, t.dtype, t.device, t.shape, t.requires_grad)
            for module in modules
            for tensors in (module._parameters, module._buffers)
            for t in tensors.values()
            if t is not None
        ]
        self.learns = any(requires_grad for *_, requires_grad in self._tensors)
        held = [value for _, value in self._names]
        self._settled = all(map(is_settled, [*values_read(model, loss_fn), *held]))

    def holds(self) -> bool:
        """Whether nothing has changed since."""
        if any(self._empty):
            return False
        for dictionary, keys, values in self._dictionaries:
            if len(dictionary) != len(keys) or not all(map(is_, dictionary, keys)):
                return False
            if not all(map(is_, dictionary.values(), values)):
                return False
        for tensor, dtype, device, shape, requires_grad in self._tensors:
            if tensor.dtype is not dtype or tensor.requires_grad is not requires_grad:
                return False
            if tensor.shape != shape or tensor.device != device:
                return False
        if not all(name.get() is value for name, value in self._names):
            return False
        return self._settled or python_key(self.model, self.loss_fn) == self.python

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, ModelState) or self._hash != other._hash:
            return False
        return (self.modes, self.tensors, self.python) == (other.modes, other.tensors, other.python)

    def __hash__(self) -> int:
        return self._hash


def is_tensor_that_learns(value: Any) -> bool:
    """Whether a value is a tensor that requires a gradient."""
    return isinstance(value, torch.Tensor) and value.requires_grad
