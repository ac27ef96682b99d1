"""Launches of generated pointwise kernels to compile: the error of a GELU with its bias, a mask, many operators;
a gated block each way, a strict step with its numbers, as many tensors as a run may have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from recorded import Case, Launch
from torch import Tensor
from torch.fx import Graph, symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx

from pccompile.kernels.devices import ARCHITECTURES
from pccompile.kernels.pointwise.kernel import launch_pointwise
from pccompile.kernels.pointwise.operator import pointwise

aten = torch.ops.aten
EVERY = tuple(ARCHITECTURES)


def _launch(function: Callable[..., object], *inputs: Tensor) -> None:
    _launch_graph(make_fx(function)(*inputs).graph, *inputs)


def _launch_graph(graph: Graph, *inputs: Tensor | float) -> None:
    plan = pointwise(graph).plan(*inputs)
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


def _gated(a: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    product = aten.silu(a) * b
    return product, product * scale + shift


def _gated_error(
    error: Tensor, a: Tensor, b: Tensor, product: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    to_product = error * scale
    return (
        aten.silu_backward(to_product * b, a),
        to_product * aten.silu(a),
        (error * product).sum([0], True),
        error.sum([0], True),
    )


def _strict_step(
    value: Tensor, below: Tensor, scale: Tensor, drive: Tensor, gain: float, step: float
) -> tuple[Tensor, ...]:
    error = aten.sub.Tensor(value, aten.mul.Tensor(below, scale))
    moved = aten.add.Tensor(value, aten.sub.Tensor(drive, error), alpha=step)
    learned = aten.mul.Tensor(gain, aten.mul.Tensor(error, below))
    return error, moved, aten.sum.dim_IntList(learned, [0], True)


def _full(*inputs: Tensor) -> tuple[Tensor, ...]:
    half = len(inputs) // 2
    pairs = [torch.tanh(x) * y for x, y in zip(inputs[:half], inputs[half:], strict=True)]
    return (*pairs[:3], sum(pairs[3:], pairs[0]))


def _image(case: Case, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    error, y = (case.empty(batch, 256, 112, 112) for _ in range(2))
    return error, y, case.empty(batch, 256, 112, 112, dtype=torch.bool)


def _transposed(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    x, y = (case.empty(64, 1024, 1024).transpose(0, 1) for _ in range(2))
    return x, y, case.empty(1024)


def _rows(case: Case, count: int) -> list[Tensor]:
    return [case.empty(8192, 4096) for _ in range(count)]


LAUNCHES = {
    "gelu_error": Launch(lambda case: _launch(_gelu_error, case.empty(8192, 4096), case.empty(8192, 4096))),
    "many": Launch(lambda case: _launch(_many, *_transposed(case))),
    "image_error": Launch(lambda case: _launch(_image_error, *_image(case, 16))),
    "wide": Launch(lambda case: _launch(_image_error, *_image(case, 1024))),
    "gated": Launch(
        lambda case: _launch(_gated, *_rows(case, 2), case.empty(4096), case.empty(4096)), architectures=EVERY
    ),
    "gated_error": Launch(lambda case: _launch(_gated_error, *_rows(case, 4), case.empty(4096)), architectures=EVERY),
    "strict_step": Launch(
        lambda case: _launch_graph(
            symbolic_trace(_strict_step).graph, *_rows(case, 2), case.empty(4096), *_rows(case, 1), 1.0, 0.1
        ),
        architectures=EVERY,
    ),
    "full": Launch(lambda case: _launch(_full, *_rows(case, 12)), architectures=EVERY),
}
