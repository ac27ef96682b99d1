"""A graph of pointwise operators in plain torch: what the generated kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Graph, Interpreter

__all__ = ["pointwise_reference"]


def pointwise_reference(graph: Graph, *inputs: Tensor | float) -> tuple[Tensor, ...]:
    """The graph's results with every floating input taken to float32 or better: unlike eager mode, not rounded between.

    Args:
        graph: of ATen operators.
        inputs: its placeholders' tensors and numbers.
    """
    results = Interpreter(torch.nn.Module(), graph=graph).run(*map(_wide, inputs))
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)


def _wide(value: Tensor | float) -> Tensor | float:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.promote_types(value.dtype, torch.float32))
    return value
