"""PyTorch's own samples of its differentiable operators and modules, each as a model with its arguments."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.testing._internal import common_methods_invocations
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.utils import _pytree as pytree

__all__ = ["Case", "Entry", "OperatorModel", "entries"]


# PyTorch's tests seed random operators inside the operator; the sweep seeds whole runs.
common_methods_invocations.wrapper_set_seed = lambda function, *args, **kwargs: function(*args, **kwargs)


@dataclass(frozen=True)
class Case:
    """One sample of an entry.

    Attributes:
        label: which sample it is.
        build: makes the model, its arguments and its keyword arguments, afresh each time; among the arguments are
            leaves that require a gradient.
        differentiable: what of the model's outputs a loss may depend on (an eigenvector's phase is free, say).
    """

    label: str
    build: Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]
    differentiable: Callable[[Any], Any] = lambda outputs: outputs


@dataclass(frozen=True)
class Entry:
    """One entry of PyTorch's lists of operators and modules, with its samples (drawn from the global seed)."""

    name: str
    samples: Callable[[], list[Case]]

    def cases(self, limit: int | None) -> list[Case]:
        """At most `limit` samples of each variant, spread evenly over all there are; the same at every call."""
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return self.samples() if limit is None else _spread(self.samples(), limit)


class OperatorModel(nn.Module):
    """An operator as a model: its first differentiable tensor is the argument, others are parameters and buffers.

    Args:
        function: the operator.
        sample: what it is called with; `torch.testing`'s SampleInput.
    """

    def __init__(self, function: Callable[..., Any], sample: Any) -> None:
        super().__init__()
        self.function = function
        self.values, self.structure = pytree.tree_flatten((sample.input, list(sample.args), sample.kwargs))
        self.tensors = {i: f"value_{i}" for i, value in enumerate(self.values) if isinstance(value, torch.Tensor)}
        differentiable = [i for i in self.tensors if self.values[i].requires_grad]
        self.position = differentiable[0] if differentiable else None
        self.example = None if self.position is None else _leaf(self.values[self.position])
        for i, name in self.tensors.items():
            if self.values[i].requires_grad:
                self.register_parameter(name, None if i == self.position else nn.Parameter(_leaf(self.values[i])))
            else:
                self.register_buffer(name, _leaf(self.values[i]))
            self.values[i] = None

    def forward(self, argument: torch.Tensor | None) -> Any:
        """The operator's result."""
        values = list(self.values)
        for i, name in self.tensors.items():
            values[i] = argument if i == self.position else getattr(self, name)
        first, rest, keywords = pytree.tree_unflatten(values, self.structure)
        return self.function(first, *rest, **keywords)


def entries() -> Iterator[Entry]:
    """Every float32 entry that supports autograd on the CPU: operators first, then modules in training mode."""
    for operator in op_db:
        if operator.supports_autograd and torch.float32 in operator.supported_backward_dtypes("cpu"):
            name = f"{operator.name}[{operator.variant_test_name}]" if operator.variant_test_name else operator.name
            yield Entry(name, partial(_operator_samples, operator))
    for module in module_db:
        if torch.float32 in module.supported_dtypes("cpu"):
            yield Entry(module.name, partial(_module_samples, module))


def _operator_samples(operator: Any) -> list[Case]:
    samples = list(operator.sample_inputs("cpu", torch.float32, requires_grad=True))
    cases = [_operator_case(f"sample {i}", operator.op, sample) for i, sample in enumerate(samples)]
    if operator.inplace_variant is not None and operator.supports_inplace_autograd:
        cases += [
            _operator_case(f"in place, sample {i}", partial(_on_a_copy, operator.inplace_variant), sample)
            for i, sample in enumerate(samples)
            if isinstance(sample.input, torch.Tensor) and not sample.broadcasts_input
        ]
    return cases


def _operator_case(label: str, function: Callable[..., Any], sample: Any) -> Case:
    def build() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        model = OperatorModel(function, sample)
        return model, (model.example,), {}

    return Case(label, build, sample.output_process_fn_grad)


def _on_a_copy(function: Callable[..., Any], first: torch.Tensor, *rest: Any, **keywords: Any) -> Any:
    name = getattr(function, "__name__", "")
    if getattr(torch.Tensor, name, None) is function:
        return getattr(first.clone(), name)(*rest, **keywords)
    return function(first.clone(), *rest, **keywords)


def _module_samples(module: Any) -> list[Case]:
    samples = module.module_inputs_func(module, device="cpu", dtype=torch.float32, requires_grad=True, training=True)
    return [_module_case(sample.desc or f"sample {i}", module.module_cls, sample) for i, sample in enumerate(samples)]


def _module_case(label: str, kind: type[nn.Module], sample: Any) -> Case:
    constructor, forward = sample.constructor_input, sample.forward_input
    model = kind(*constructor.args, **constructor.kwargs).train()
    if isinstance(model, LazyModuleMixin):
        model(*forward.args, **forward.kwargs)  # which gives its parameters their shapes

    def build() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        args, kwargs = pytree.tree_map_only(torch.Tensor, _leaf, (forward.args, forward.kwargs))
        return copy.deepcopy(model), args, kwargs

    return Case(label, build)


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, of the whole memory where it is a view: some operators look beyond it."""
    alone = tensor.detach()
    copied = copy.deepcopy(alone) if alone.layout is torch.strided else alone.clone()
    return copied.requires_grad_(tensor.requires_grad)


def _spread(cases: list[Case], limit: int) -> list[Case]:
    """`limit` of the ordinary cases and of those in place, evenly spread."""
    variants = [[case for case in cases if case.label.startswith("in place") is wanted] for wanted in (False, True)]
    return [
        variant[index * len(variant) // min(limit, len(variant))]
        for variant in variants
        for index in range(min(limit, len(variant)))
    ]
