"""Networks of convolutions and linear layers with random tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from layers import normals, strided
from torch import Tensor

from pccompile.kernels import NetworkLayer

# By name: (batch, channels, height, width) or (batch, in), and (weight, activation, options) of each layer.
Shape = tuple[int, ...]
NETWORKS: dict[str, tuple[Shape, list[tuple[Shape, str, dict[str, Any]]]]] = {
    "small MNIST CNN": (
        (3, 1, 10, 9),
        [
            ((5, 1, 3, 3), "relu", {"pool": "max", "window": (2, 2, 2, 2)}),
            ((3, 5, 2, 2), "relu", {}),
            ((7, 18), "relu", {}),
            ((4, 7), "identity", {}),
        ],
    ),
    "small strided": (
        (5, 1, 9, 7),
        [
            ((4, 1, 3, 3), "tanh", {"form": ((2, 2), (1, 1), (1, 1), 1)}),
            ((6, 4, 3, 3), "tanh", {"form": ((2, 2), (1, 1), (1, 1), 1)}),
            ((3, 36), "identity", {}),
        ],
    ),
    "tiny": (
        (5, 1, 4, 3),
        [((2, 1, 2, 2), "tanh", {"form": ((2, 1), (1, 0), (1, 1), 1)}), ((3, 12), "identity", {})],
    ),
    "average between": (
        (3, 2, 9, 8),
        [
            ((3, 2, 2, 2), "gelu", {}),
            ((5, 3, 3, 2), "silu", {"pool": "average", "window": (2, 1, 2, 2)}),
            ((4, 5, 2, 2), "leaky_relu", {"form": ((1, 1), (1, 0), (2, 1), 1)}),
            ((33, 24), "softplus", {}),
            ((5, 33), "tanh", {}),
        ],
    ),
    "maximum with gaps": (
        (2, 2, 8, 7),
        [
            ((3, 2, 1, 1), "sigmoid", {}),
            ((4, 3, 2, 2), "gelu_tanh", {"pool": "max", "window": (2, 1, 3, 2)}),
            ((3, 24), "identity", {}),
        ],
    ),
    "stride over the kernel, a convolution at the end": (
        (3, 2, 7, 6),
        [
            ((3, 2, 2, 2), "tanh", {}),
            ((2, 3, 1, 1), "identity", {"form": ((2, 3), (0, 1), (1, 1), 1)}),
        ],
    ),
    "many channels": (
        (1, 3, 3, 4),
        [((66, 3, 2, 2), "tanh", {}), ((35, 66, 2, 1), "relu", {}), ((3, 105), "identity", {})],
    ),
    "one pixel": ((1, 1, 1, 1), [((1, 1, 1, 1), "tanh", {}), ((1, 1), "identity", {})]),
    "linear": ((20, 12), [((33, 12), "tanh", {}), ((7, 33), "gelu", {}), ((4, 7), "identity", {})]),
    "pooled at the end": (
        (2, 2, 5, 5),
        [
            ((3, 2, 2, 2), "tanh", {}),
            ((2, 3, 1, 1), "tanh", {"pool": "average", "window": (2, 2, 2, 2)}),
        ],
    ),
}


@dataclass(frozen=True)
class RandomNetwork:
    """x, a target, and layers."""

    x: Tensor
    target: Tensor
    layers: list[NetworkLayer]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, list[NetworkLayer]]:
        """network_sweep's arguments."""
        return self.x, self.target, self.layers

    def double(self) -> RandomNetwork:
        """The same numbers in float64."""
        target = self.target.double() if self.target.is_floating_point() else self.target
        return replace(self._with(lambda tensor: tensor.double()), target=target)

    def scattered(self) -> RandomNetwork:
        """The same network with no contiguous tensor."""
        return self._with(strided)

    def _with(self, change: Callable[[Tensor], Tensor]) -> RandomNetwork:
        layers = [
            replace(layer, weight=change(layer.weight), bias=None if layer.bias is None else change(layer.bias))
            for layer in self.layers
        ]
        return replace(self, x=change(self.x), layers=layers)


def random_network(
    device: str,
    name: str,
    loss: str = "cross_entropy",
    dtype: torch.dtype = torch.float32,
    batch: int | None = None,
    bias: bool = True,
) -> RandomNetwork:
    """A network of that name whose pre-activations have a standard deviation of about one."""
    shape, described = NETWORKS[name]
    shape = shape if batch is None else (batch, *shape[1:])
    generator = torch.Generator().manual_seed(5)
    normal = normals(generator, dtype, device)
    layers = [
        NetworkLayer(
            normal(*size) / max(torch.Size(size[1:]).numel(), 1) ** 0.5,
            normal(size[0]) if bias else None,
            activation,
            **options,
        )
        for size, activation, options in described
    ]
    outputs = OUTPUTS.get(name, described[-1][0][0])
    if loss == "cross_entropy":
        target = torch.randint(0, outputs, (shape[0],), generator=generator).to(device)
    else:
        target = normal(shape[0], outputs)
    return RandomNetwork(normal(*shape), target, layers)


# Of networks that end with an image: its elements.
OUTPUTS = {"stride over the kernel, a convolution at the end": 18, "pooled at the end": 8}
