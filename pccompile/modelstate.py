"""What of a model a captured program depends on, and whether it is still so: the check that runs at every call."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from pccompile.call import guard_of
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

_version = torch._C._dynamo.guards.dict_version
_kind = attrgetter("dtype", "device", "shape", "requires_grad")
_get = methodcaller("get")


class _Untouched:
    """Tells that nothing was written into dictionaries and that tensors are of the same kinds; may say no needlessly.

    It compares the counters by which Dynamo sees that a dictionary changed, and so reads little memory: between two
    steps of training little of what is compared object by object is left in the processor's cache.
    """

    def __init__(self, dictionaries: list[dict[Any, Any]], tensors: list[torch.Tensor]) -> None:
        self._empty = [dictionary for dictionary in dictionaries if not dictionary]
        self._filled = [dictionary for dictionary in dictionaries if dictionary]
        self._versions = list(map(_version, self._filled))
        self._tensors, self._guard = tensors, guard_of(tensors)

    def __call__(self) -> bool:
        return (
            not any(self._empty) and list(map(_version, self._filled)) == self._versions and self._guard(*self._tensors)
        )


class ModelState:
    """Modes, parameters, buffers and Python values of a model (and its loss) at one moment; equal states capture alike.

    Building one reads all of the model's code; `holds` compares objects by identity, which takes microseconds a module.

    Attributes:
        modes: training or evaluation, of each of `modules_of(model, loss_fn)`.
        tensors: dtype, device, shape, requires_grad and ties of every parameter and buffer.
        python: attributes, hooks, globals and closures that the forward may read.
        learns: whether some parameter or buffer requires a gradient.
        held: the parameters, buffers and constants that compiled programs read, by program, in this state.
    """

    def __init__(self, model: nn.Module, loss_fn: Any) -> None:
        self.model, self.loss_fn = model, loss_fn
        modules = modules_of(model, loss_fn)
        self.modes: tuple[bool, ...] = tuple(module.training for module in modules)
        self.tensors: tuple[Hashable, ...] = tuple(tensors_key(model, loss_fn).values())
        self.python: tuple[Hashable, ...] = python_key(model, loss_fn)
        self._hash = hash((self.modes, self.tensors, self.python))
        self._dictionaries = dictionaries_of(modules)
        self._sizes = list(map(len, self._dictionaries))
        self._keys = list(chain.from_iterable(self._dictionaries))
        self._values = list(chain.from_iterable(map(dict.values, self._dictionaries)))
        self._names = names_read(model, loss_fn)
        self._named = [name.get() for name in self._names]
        kept = (t for m in modules for tensors in (m._parameters, m._buffers) for t in tensors.values())
        self._tensors = [tensor for tensor in kept if tensor is not None]
        self._kinds = list(map(_kind, self._tensors))
        self.learns = any(tensor.requires_grad for tensor in self._tensors)
        self.held: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._untouched = _Untouched(self._dictionaries, self._tensors)
        self._settled = all(map(is_settled, [*values_read(model, loss_fn), *self._named]))

    def holds(self) -> bool:
        """Whether nothing has changed since."""
        if not self._untouched():
            if not self._is_same():
                return False
            self._untouched = _Untouched(self._dictionaries, self._tensors)
        return all(map(is_, map(_get, self._names), self._named)) and (
            self._settled or python_key(self.model, self.loss_fn) == self.python
        )

    def _is_same(self) -> bool:
        """Whether the modules' dictionaries hold the same objects, in the same order, and tensors of the same kinds."""
        dictionaries = self._dictionaries
        return (
            list(map(len, dictionaries)) == self._sizes
            and all(map(is_, chain.from_iterable(map(dict.values, dictionaries)), self._values))
            and all(map(is_, chain.from_iterable(dictionaries), self._keys))
            and list(map(_kind, self._tensors)) == self._kinds
        )

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
