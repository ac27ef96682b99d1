"""Chains of linear layers with random tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from layers import normals, strided, transposed
from torch import Tensor


@dataclass(frozen=True)
class RandomChain:
    """x (batch, in), a target, and weights (out, in), biases (out,) and activations of each layer."""

    x: Tensor
    target: Tensor
    weights: list[Tensor]
    biases: list[Tensor | None]
    activations: list[str]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor | None], list[str]]:
        """strict_sweep's arguments."""
        return self.x, self.target, self.weights, self.biases, self.activations

    def double(self) -> RandomChain:
        """The same numbers in float64."""
        return RandomChain(
            self.x.double(),
            self.target.double() if self.target.is_floating_point() else self.target,
            [weight.double() for weight in self.weights],
            [None if bias is None else bias.double() for bias in self.biases],
            self.activations,
        )

    def scattered(self) -> RandomChain:
        """The same chain with no contiguous tensor."""
        return replace(
            self,
            x=transposed(self.x),
            target=strided(self.target) if self.target.dim() == 2 else self.target,
            weights=[strided(weight) for weight in self.weights],
            biases=[None if bias is None else strided(bias) for bias in self.biases],
        )


def random_chain(
    device: str,
    batch: int = 35,
    widths: tuple[int, ...] = (12, 33, 18, 7),
    activations: tuple[str, ...] = ("tanh", "gelu", "identity"),
    loss: str = "cross_entropy",
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
) -> RandomChain:
    """A chain whose pre-activations have a standard deviation of about one."""
    generator = torch.Generator().manual_seed(11)
    normal = normals(generator, dtype, device)
    if loss == "cross_entropy":
        target = torch.randint(0, widths[-1], (batch,), generator=generator).to(device)
    else:
        target = normal(batch, widths[-1])
    shapes = list(zip(widths[1:], widths, strict=False))
    return RandomChain(
        normal(batch, widths[0]),
        target,
        [normal(out, in_features) / math.sqrt(max(in_features, 1)) for out, in_features in shapes],
        [normal(out) if bias else None for out, _ in shapes],
        list(activations),
    )
