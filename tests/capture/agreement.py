"""What the tests of capture's holes ask: does a compiled model train as the model itself does, or is it refused?"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import pccompile
from pccompile.errors import CaptureError


class Net(nn.Module):
    """Two linear layers and, between them, whatever a test is about."""

    def __init__(self, between: Callable[[Any, torch.Tensor], torch.Tensor], **attributes: Any) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(3, 3), nn.Linear(3, 3)
        self.between = between
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.out(self.between(self, self.fc(x)))


def batch(*shape: int, **options: Any) -> torch.Tensor:
    return torch.randn(*(shape or (4, 3)), **options)


def step(model: nn.Module, call: Callable[..., Any], inputs: Any, seed: int) -> dict[str, Any]:
    """Everything that one training step yields, by name."""
    torch.manual_seed(seed)
    args, kwargs = inputs if isinstance(inputs, tuple) and isinstance(inputs[-1], dict) else (inputs, {})
    args = args if isinstance(args, tuple) else (args,)
    args, kwargs = copy.deepcopy((args, kwargs))
    tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    outputs = pytree.tree_leaves(call(*args, **kwargs))
    model.zero_grad()
    losses = [o.float().sin().sum() for o in outputs if isinstance(o, torch.Tensor) and o.requires_grad]
    if losses:
        torch.stack(losses).sum().backward()
    return {
        **{f"output {i}": value for i, value in enumerate(outputs)},
        **{f"input {i}": tensor for i, tensor in enumerate(tensors)},
        **{f"gradient of input {i}": tensor.grad for i, tensor in enumerate(tensors) if tensor.is_leaf},
        **{f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()},
        **{name: value.clone() for name, value in model.state_dict().items()},
    }


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert isinstance(theirs[name], torch.Tensor), name
            assert value.requires_grad == theirs[name].requires_grad, name
            assert value.dtype == theirs[name].dtype, name
            torch.testing.assert_close(
                value, theirs[name], rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
            )
        else:
            assert value == theirs[name], name


def agree(
    make: Callable[[], nn.Module],
    *calls: Any,
    before: Callable[[nn.Module, int], Any] | None = None,
    **options: Any,
) -> pccompile.PCModule:
    """Train a model and its compiled twin for a few steps; everything must agree.

    Args:
        make: builds the model; called twice, from the same seed.
        calls: the arguments of each step: a tensor, a tuple, or (tuple, dict of keyword arguments).
        before: called with each model and the number of the step, before the step.
    """
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(make())
    ours, theirs = models
    pc = pccompile.compile(ours, **{"dynamic": False, **options})
    for number, inputs in enumerate(calls):
        results = []
        for model, call in ((ours, pc), (theirs, theirs)):
            if before is not None:
                before(model, number)
            results.append(step(model, call, inputs, seed=number))
        assert_same(*results)
    return pc


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """The model, its Python attributes and all random numbers are afterwards what they were."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {path: dict(vars(module)) for path, module in model.named_modules()}
    contents = {
        (path, name): list(value.items()) if isinstance(value, dict) else list(value)
        for path, found in attributes.items()
        for name, value in found.items()
        if isinstance(value, dict | list | set)
    }
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    yield
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert {path: dict(vars(module)) for path, module in model.named_modules()} == attributes
    for (path, name), value in contents.items():
        now = vars(model.get_submodule(path))[name]
        assert (list(now.items()) if isinstance(now, dict) else list(now)) == value
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1] and numpy.random.get_state()[1].tolist() == states[2]


def refused(
    model: nn.Module, *inputs: Any, match: str, line: str = "", error: type[CaptureError] = CaptureError, **options: Any
) -> str:
    """Assert that the model is refused by an error with place, cause and cure, without the replay, and left as it was.

    Args:
        match: a regular expression to be found in the error.
        line: a part of the source line that the error names.
    """
    with untouched(model), pytest.raises(error, match=match) as raised:
        pccompile.compile(model, **{"dynamic": False, "verify": False, **options})(*inputs)
    text = str(raised.value)
    for label in ("module:", "node:", "source:", "cause:", "cure:"):
        assert label in text, text
    assert line in text.partition("source:")[2].partition("\n")[0], text
    return text
