"""What the command line's words stand for: a model, its inputs, a rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import pccompile
from pccompile.demo.errors import CommandLineError, UnusableInputError
from pccompile.demo.references import is_reference, resolve
from pccompile.rules import Rule

__all__ = ["build_rule", "example", "module_and_inputs"]

SHAPE = re.compile(r"(scalar|\d+(?:x\d+)*)(?::(\w+))?(?::(\d+))?")


def module_and_inputs(reference: str) -> tuple[nn.Module, Any, Any]:
    """The model that `module:factory` makes, and the inputs and the target if the factory returns them, else None.

    Raises:
        CommandLineError: the words name nothing that can be called.
        UnusableInputError: the factory returned something else.
    """
    if not is_reference(reference):
        raise CommandLineError(f"{reference!r} is no model", cure="module:factory, such as my_models:make_model")
    made = resolve(reference)()
    parts = made if isinstance(made, tuple) else (made,)
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], nn.Module):
        raise UnusableInputError(
            f"{reference} returned a {type(made).__name__}",
            cure="return an nn.Module, (module, inputs) or (module, inputs, target)",
        )
    model, inputs, target = (*parts, None, None)[:3]
    return model, inputs, target


def example(words: str) -> torch.Tensor:
    """A random tensor by its shape, "8x3x32x32", "8:int64:10"; or what `module:function` returns.

    Raises:
        CommandLineError: the words are no shape and name no function.
    """
    found = SHAPE.fullmatch(words)
    if found is None:
        if not is_reference(words):
            raise CommandLineError(f"{words!r} is no shape", cure="such as 8x3x32x32, 8x128:float64 or 8:int64:10")
        tensor: torch.Tensor = resolve(words)()
        return tensor
    sizes = () if found[1] == "scalar" else tuple(map(int, found[1].split("x")))
    dtype = getattr(torch, found[2] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise CommandLineError(
            f"{words!r}: there is no dtype {found[2]}", cure="float32, float64, bfloat16, int64, ..."
        )
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(sizes, dtype=dtype)
    return torch.randint(int(found[3] or 2), sizes).to(dtype)


def build_rule(name: str, steps: int, step_size: float) -> Rule:
    """The rule of that name.

    Raises:
        UsageError: steps or step size that the rule cannot have.
    """
    rules: dict[str, Callable[[], Rule]] = {
        "zil": lambda: pccompile.ZIL(),
        "fixed-prediction": lambda: pccompile.FixedPrediction(steps, step_size),
        "strict": lambda: pccompile.Strict(steps, step_size),
        "incremental": lambda: pccompile.Incremental(steps, step_size),
    }
    return rules[name]()
