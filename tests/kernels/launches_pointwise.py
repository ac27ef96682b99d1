"""Launches of generated pointwise kernels to compile: the error of a GELU with its bias, a mask, many operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
from recorded import Case, Launch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pccompile.kernels.pointwise.kernel import launch_pointwise
from pccompile.kernels.pointwise.operator import pointwise

aten = torch.ops.aten


def _launch(function: Callable[..., object], *inputs: Tensor) -> None:
    plan = pointwise(make_fx(function)(*inputs)).plan(*inputs)
    outputs = [torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in plan.outputs]
    launch_pointwise(plan, inputs, outputs)


def _gelu_error(error: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    d = aten.gelu_backward(error, z)
    return d, d.sum(0)


def _image_error(error: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    d = torch.where(mask, aten.threshold_backward(error, y, 0), 0.0)
    return d, d.sum([0, 2, 3])


def _many(x: Tensor, y: Tensor, row: Tensor) -> tuple[Tensor, ...]:
    t = torch.tanh(x + row) * torch.sigmoid(y)
    u = aten.softplus(t) / (t.abs() + 1) - (x**2 + 1) ** -0.5
    return t, u.clamp(-1, 1), torch.where(u > t, aten.silu(x), aten.elu(y)), (x * y).exp().log1p()


def _image(case: Case, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    error, y = (case.empty(batch, 256, 112, 112) for _ in range(2))
    return error, y, case.empty(batch, 256, 112, 112, dtype=torch.bool)


def _transposed(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    x, y = (case.empty(64, 1024, 1024).transpose(0, 1) for _ in range(2))
    return x, y, case.empty(1024)


LAUNCHES = {
    "gelu_error": Launch(lambda case: _launch(_gelu_error, case.empty(8192, 4096), case.empty(8192, 4096))),
    "many": Launch(lambda case: _launch(_many, *_transposed(case))),
    "image_error": Launch(lambda case: _launch(_image_error, *_image(case, 16))),
    "wide": Launch(lambda case: _launch(_image_error, *_image(case, 1024))),
}
