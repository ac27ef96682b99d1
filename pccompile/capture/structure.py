"""What a forward returns, with the tensors taken out, to be put together again around others.

A pickler meets every part of an object, whatever it is: containers, dataclasses, the caches and outputs of model
libraries. It leaves tensors and symbolic sizes to us, and classes, functions and modules, which stay themselves.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from pccompile.errors import CaptureError

__all__ = ["Structure"]

_PARTS = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)
_THEMSELVES = (type, FunctionType, BuiltinFunctionType, MethodType, nn.Module)


@dataclass(frozen=True)
class Structure:
    """An object without its tensors.

    Attributes:
        pickled: the object; tensors and what stays itself are references into the lists below.
        themselves: the classes, functions and modules in it.
    """

    pickled: bytes
    themselves: tuple[Any, ...]

    @staticmethod
    def take_apart(value: Any) -> tuple[Structure, list[Any]]:
        """The structure of an object, and its tensors and symbolic sizes, each once.

        Raises:
            CaptureError: something in it can neither be pickled nor stay itself.
        """
        file = io.BytesIO()
        pickler = _Pickler(file)
        try:
            pickler.dump(value)
        except Exception as error:  # whatever a class raises that does not want to be pickled
            raise CaptureError(
                f"the forward returns a {type(value).__name__} whose tensors cannot be found: {error}",
                cure="return tensors, containers, dataclasses or other objects that pickle can copy",
            ) from error
        return Structure(file.getvalue(), tuple(pickler.themselves)), pickler.parts

    def around(self, parts: Sequence[Any]) -> Any:
        """The object with these tensors in the place of those that were taken out."""
        return _Unpickler(io.BytesIO(self.pickled), {"part": parts, "itself": self.themselves}).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.parts: list[Any] = []
        self.themselves: list[Any] = []
        self.seen: dict[int, tuple[str, int]] = {}

    def persistent_id(self, value: Any) -> tuple[str, int] | None:
        if isinstance(value, _PARTS):
            kind, found = "part", self.parts
        elif isinstance(value, _THEMSELVES):
            kind, found = "itself", self.themselves
        else:
            return None
        if id(value) not in self.seen:
            self.seen[id(value)] = (kind, len(found))
            found.append(value)
        return self.seen[id(value)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, found: dict[str, Sequence[Any]]) -> None:
        super().__init__(file)
        self.found = found

    def persistent_load(self, reference: tuple[str, int]) -> Any:
        kind, index = reference
        return self.found[kind][index]
