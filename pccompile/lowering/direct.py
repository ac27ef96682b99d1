"""PyTorch's own functions for ATen operators: the same computation, called in half the time from Python.

Only bindings generated from the operator's own schema are here, so positions and names of arguments agree.
"""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["DIRECT"]

_aten = torch.ops.aten

DIRECT: dict[Any, Callable[..., Any]] = {
    _aten._log_softmax.default: torch._log_softmax,
    _aten._softmax.default: torch._softmax,
    _aten.add.Tensor: torch.add,
    _aten.addmm.default: torch.addmm,
    _aten.bernoulli_.float: torch.Tensor.bernoulli_,
    _aten.bmm.default: torch.bmm,
    _aten.cat.default: torch.cat,
    _aten.clone.default: torch.clone,
    _aten.convolution.default: torch.convolution,
    _aten.div.Tensor: torch.div,
    _aten.div_.Scalar: torch.Tensor.div_,
    _aten.embedding.default: torch.embedding,
    _aten.empty_like.default: torch.empty_like,
    _aten.exp.default: torch.exp,
    _aten.expand.default: torch.Tensor.expand,
    _aten.mean.dim: torch.mean,
    _aten.mm.default: torch.mm,
    _aten.mul.Scalar: torch.mul,
    _aten.mul.Tensor: torch.mul,
    _aten.native_layer_norm.default: torch.native_layer_norm,
    _aten.neg.default: torch.neg,
    _aten.permute.default: torch.permute,
    _aten.relu.default: torch.relu,
    _aten.rsqrt.default: torch.rsqrt,
    _aten.select.int: torch.select,
    _aten.sigmoid.default: torch.sigmoid,
    _aten.squeeze.dim: torch.squeeze,
    _aten.sub.Tensor: torch.sub,
    _aten.sum.dim_IntList: torch.sum,
    _aten.t.default: torch.t,
    _aten.tanh.default: torch.tanh,
    _aten.transpose.int: torch.transpose,
    _aten.unsqueeze.default: torch.unsqueeze,
    _aten.view.default: torch.Tensor.view,
}
