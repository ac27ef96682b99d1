"""What the tests of the rules share: models compiled once, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hand_written import Case
from references import Compile, Gradients, Tensor, Tensors

import pccompile


@pytest.fixture(scope="session")
def compiled() -> Compile:
    """compiled(case, rule, loss_fn, ...): the case's model under a rule, captured once for all tests.

    Optimised programs for the usual loss come from torch.export, the rest from symbolic tracing, which is quicker.
    """
    modules: dict[Any, pccompile.PCModule] = {}

    def get(
        case: Case,
        rule: Any,
        loss_fn: Callable[..., Tensor] | None = F.cross_entropy,
        optimize: bool = True,
        vertices: Any = None,
    ) -> pccompile.PCModule:
        vertices = vertices or case.vertices
        key = (case.name, loss_fn, optimize, str(vertices))
        if key not in modules:
            capture = "export" if optimize and loss_fn is F.cross_entropy else "symbolic"
            # some of the rules here are wrong on purpose
            modules[key] = pccompile.compile(
                case.model(), rule, loss_fn, vertices=vertices, capture=capture, optimize=optimize, verify=False
            )
        pc = modules[key]
        pc.rule, pc.record_energies = rule, False
        return pc

    return get


@pytest.fixture(scope="session")
def gradients() -> Gradients:
    """gradients(pc, x, y): those of `pc.loss` by the parameters and, as "x", by the input; zero where no error came."""

    def get(pc: pccompile.PCModule, x: Tensor, y: Any) -> Tensors:
        x = x.clone().requires_grad_()
        leaves = {**dict(pc.named_parameters()), "x": x}
        found = torch.autograd.grad(pc.loss(x, y), list(leaves.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    return get
