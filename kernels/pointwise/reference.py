"""A graph of pointwise operators in plain torch: what the generated kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter

__all__ = ["pointwise_reference"]


def pointwise_reference(graph: Graph, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The graph's results with every floating input taken to float32 or better: unlike eager mode, not rounded between.

    Args:
        graph: of ATen operators.
        inputs: its placeholders' tensors.
    """
    module = GraphModule(torch.nn.Module(), graph)
    wide = [t.to(torch.promote_types(t.dtype, torch.float32)) if t.is_floating_point() else t for t in inputs]
    results = Interpreter(module).run(*wide)
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)
