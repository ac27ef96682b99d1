"""One training step of a model by autograd and by its compiled twin, compared in everything it leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

import pccompile

Step = Callable[[nn.Module], tuple[Any, torch.Tensor]]  # a module -> its outputs and the loss


def assert_trains_as_autograd_does(model: nn.Module, step: Step, **options: Any) -> pccompile.PCModule:
    """Outputs, loss, buffers and gradients of one training step under Z-IL equal autograd's, bit for bit.

    Args:
        model: the model, in training mode; it keeps the gradients.
        step: runs the module it is given and returns (outputs, loss).
        options: for `pccompile.compile`.
    """
    assert model.training
    twin = copy.deepcopy(model)
    pc = pccompile.compile(model, **options)
    assert_same_step(twin, pc, step)
    return pc


def assert_one_capture_serves(model: nn.Module, steps: Sequence[Step]) -> None:
    """The same as above for several steps on inputs of different sizes, with a single capture for all of them."""
    twin, pc = copy.deepcopy(model), pccompile.compile(model)
    for step in steps:
        assert_same_step(twin, pc, step)
    assert len(pc._variants._entries) == 1


def assert_same_step(twin: nn.Module, pc: pccompile.PCModule, step: Step) -> None:
    """The same as above for a module that is compiled already, and a copy of its model."""
    twin.zero_grad(), pc.zero_grad()
    theirs, their_loss = train(twin, step)
    ours, our_loss = train(pc, step)
    assert torch.equal(ours_and_theirs := our_loss, their_loss), (ours_and_theirs, their_loss)
    assert type(ours) is type(theirs)
    expected, actual = dict(tensors_in(theirs)), dict(tensors_in(ours))
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
        assert actual[name].requires_grad == value.requires_grad, name
    for (name, ours), theirs in zip(pc.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert_same_gradients(pc, twin)


def assert_same_gradients(pc: nn.Module, twin: nn.Module) -> None:
    """Every p.grad is autograd's, bit for bit, and None where autograd leaves None."""
    expected = {name: p.grad for name, p in twin.named_parameters()}
    assert any(gradient is not None and gradient.any() for gradient in expected.values())
    for name, parameter in pc.named_parameters():
        ours, theirs = parameter.grad, expected[name]
        assert (ours is None) == (theirs is None), name
        assert theirs is None or torch.equal(ours, theirs), f"{name}: {relative_error(ours, theirs):.1e}"


def train(module: nn.Module, step: Step) -> tuple[Any, torch.Tensor]:
    """Forward and backward from a fixed random state."""
    torch.manual_seed(7)
    outputs, loss = step(module)
    loss.backward()
    return outputs, loss


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """|ours - theirs| / |theirs|."""
    return float((ours - theirs).double().norm() / theirs.double().norm())


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of an output, by where it is: in containers and in the attributes of objects."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from tensors_in(part, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from tensors_in(part, f"{path}.{index}")
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value), path)
