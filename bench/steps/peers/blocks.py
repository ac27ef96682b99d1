"""A chain of layers cut into blocks: a layer with parameters and the layers without that follow it."""

from __future__ import annotations

from torch import nn

__all__ = ["blocks"]


def blocks(model: nn.Module) -> list[nn.Sequential]:
    """The blocks of a Sequential; they share its layers.

    Raises:
        TypeError: the model is no chain of layers.
    """
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"{type(model).__name__} is not a chain of layers")
    found: list[list[nn.Module]] = []
    for layer in model:
        if not found or any(True for _ in layer.parameters()):
            found.append([])
        found[-1].append(layer)
    return [nn.Sequential(*layers) for layers in found]
