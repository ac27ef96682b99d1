"""A PyTorch chain of layers as equinox layers on JAX arrays, and gradients back."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves the GPU's memory to the others

import equinox as eqx
import jax
import jax.numpy as jnp
import torch
from torch import nn

from bench.steps.task import Gradients, Task

jax.config.update("jax_default_matmul_precision", "highest")  # float32 as it is, also on a GPU, as PyTorch's is

__all__ = ["batch", "check_device", "gradients_by_name", "layer", "to_jax"]


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """A copy as a JAX array."""
    return jnp.array(tensor.detach().cpu().numpy())


def check_device(task: Task) -> None:
    """Refuse a comparison of different devices.

    Raises:
        RuntimeError: JAX has no GPU here, and PyTorch computes on one.
    """
    found, wanted = jax.default_backend(), "gpu" if task.inputs.is_cuda else "cpu"
    if found != wanted:
        raise RuntimeError(f"JAX computes on {found}, PyTorch on {wanted}")


def batch(task: Task, classes: int = 10) -> tuple[jax.Array, jax.Array]:
    """Inputs, and targets one-hot."""
    return to_jax(task.inputs), jax.nn.one_hot(to_jax(task.target), classes)


def layer(module: nn.Module) -> Callable[..., Any]:
    """The equinox layer, for one sample, with the same parameters."""
    key = jax.random.PRNGKey(0)
    made: Any
    if isinstance(module, nn.Linear):
        made = eqx.nn.Linear(module.in_features, module.out_features, key=key)
        return eqx.tree_at(lambda m: (m.weight, m.bias), made, (to_jax(module.weight), to_jax(module.bias)))
    if isinstance(module, nn.Conv2d):
        sizes = module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding
        made = eqx.nn.Conv2d(*sizes, key=key)
        bias = to_jax(module.bias).reshape(made.bias.shape)
        return eqx.tree_at(lambda m: (m.weight, m.bias), made, (to_jax(module.weight), bias))
    if isinstance(module, nn.Tanh):
        return eqx.nn.Lambda(jnp.tanh)
    if isinstance(module, nn.Flatten):
        return eqx.nn.Lambda(jnp.ravel)
    raise TypeError(f"no equinox layer for {type(module).__name__}")


def gradients_by_name(task: Task, arrays: list[jax.Array]) -> Gradients:
    """Gradients in the order of the model's parameters, shaped like them."""
    named = list(task.model.named_parameters())
    return {
        name: torch.tensor(jax.device_get(array), device=parameter.device).reshape(parameter.shape)
        for (name, parameter), array in zip(named, arrays, strict=True)
    }
