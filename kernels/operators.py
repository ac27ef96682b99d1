"""Custom operators: the same function runs on tensors, and on the stand-ins that traces hand around."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.library import CustomOpDef

__all__ = ["custom_operator", "has_data"]


def custom_operator(name: str, mutates: Sequence[str] = ()) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Makes a function the operator of that name, and what stands for it where tensors have no data.

    The function checks its arguments, allocates its results, and launches where its inputs have data (see `has_data`).

    Args:
        name: with its namespace, as "pccompile::linear_predict".
        mutates: the arguments that it writes into.
    """

    def register(function: Callable[..., Any]) -> CustomOpDef:
        registered = torch.library.custom_op(name, function, mutates_args=mutates)
        registered.register_fake(function)
        return registered

    return register


def has_data(tensor: Tensor) -> bool:
    """Whether there are numbers behind a tensor, for a kernel to read: neither a trace nor the meta device has any."""
    return not (isinstance(tensor, FakeTensor) or tensor.is_meta)
