"""Fixed prediction against its equations written out in `references`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hand_written import CHAIN, SINGLE_OUTPUT_CASES, SKIPS, SKIPS_NODES, TIED, TWO_HEADS, Case
from references import Compile, Gradients, Tensor, Tensors, clamped_tensors, fixed_prediction, relative_error, worst

import pccompile
from pccompile.errors import UsageError

SETTINGS = [(1, 0.3), (2, 0.3), (3, 1.0), (4, 0.5), (7, 0.1), (25, 0.2)]


def squared_error(output: Tensor, y: Tensor) -> Tensor:
    return ((output - F.one_hot(y, 4)) ** 2).sum(dim=1).mean() / 2


def both_heads(outputs: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    return F.cross_entropy(outputs[1], y) + (outputs[0] ** 2).sum(dim=1).mean()


def expected(case: Case, x: Tensor, y: Tensor, rule: pccompile.FixedPrediction, loss_fn: Any) -> Tensors:
    graph = case.graph.levelled() if rule.levelled else case.graph
    clamped = clamped_tensors(case.model(), x)
    if loss_fn is both_heads:
        return fixed_prediction(graph, clamped, lambda *mu: both_heads(mu, y), rule.steps, rule.step_size)
    return fixed_prediction(graph, clamped, lambda mu: loss_fn(mu, y), rule.steps, rule.step_size)


@pytest.mark.parametrize("optimize", [True, False], ids=["optimised", "literal"])
@pytest.mark.parametrize("levelled", [True, False], ids=["levelled", "as it is"])
@pytest.mark.parametrize("case", SINGLE_OUTPUT_CASES, ids=str)
def test_fixed_prediction_gradients_equal_the_equations(
    compiled: Compile, gradients: Gradients, case: Case, levelled: bool, optimize: bool
) -> None:
    x, y = case.batch()
    tolerance = 1e-12 if optimize else 1e-6  # the literal program recovers errors as v - mu, small ones inaccurately
    for steps, step_size in SETTINGS:
        rule = pccompile.FixedPrediction(steps, step_size, levelled)
        actual = gradients(compiled(case, rule, optimize=optimize), x, y)
        assert worst(actual, expected(case, x, y, rule, F.cross_entropy)) < tolerance, (steps, step_size)


@pytest.mark.parametrize("levelled", [True, False], ids=["levelled", "as it is"])
def test_squared_error_is_a_loss_like_any_other(compiled: Compile, gradients: Gradients, levelled: bool) -> None:
    x, y = SKIPS.batch()
    for steps, step_size in SETTINGS:
        rule = pccompile.FixedPrediction(steps, step_size, levelled)
        actual = gradients(compiled(SKIPS, rule, squared_error), x, y)
        assert worst(actual, expected(SKIPS, x, y, rule, squared_error)) < 1e-12


@pytest.mark.parametrize("levelled", [True, False], ids=["levelled", "as it is"])
def test_a_hidden_value_that_the_loss_reads_too_has_an_identity_as_output_vertex(
    compiled: Compile, gradients: Gradients, levelled: bool
) -> None:
    x, y = TWO_HEADS.batch()
    for steps, step_size in SETTINGS:
        rule = pccompile.FixedPrediction(steps, step_size, levelled)
        actual = gradients(compiled(TWO_HEADS, rule, both_heads), x, y)
        assert worst(actual, expected(TWO_HEADS, x, y, rule, both_heads)) < 1e-12


@pytest.mark.parametrize("levelled", [True, False], ids=["levelled", "as it is"])
@pytest.mark.parametrize("case", [CHAIN, SKIPS, SKIPS_NODES], ids=str)
def test_the_loss_outside_gives_the_gradients_of_the_loss_inside(
    compiled: Compile, gradients: Gradients, case: Case, levelled: bool
) -> None:
    x, y = case.batch()
    rule = pccompile.FixedPrediction(6, 0.3, levelled)
    inside = gradients(compiled(case, rule), x, y)
    pc = compiled(case, rule, loss_fn=None)
    x = x.clone().requires_grad_()
    leaves = {**dict(pc.named_parameters()), "x": x}
    loss = F.cross_entropy(pc(x), y)
    outside = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    assert worst(dict(zip(leaves, outside, strict=True)), inside) < 1e-12


def test_gradients_add_up_in_p_grad_as_autograd_adds_them() -> None:
    x, y = SKIPS.batch()
    model = SKIPS.model()
    pc = pccompile.compile(model, pccompile.FixedPrediction(4, 0.5), F.cross_entropy, vertices="layers")
    x.requires_grad_()
    for _ in range(2):
        pc.loss(x, y).backward()
    rule = pccompile.FixedPrediction(4, 0.5)
    once = expected(SKIPS, x.detach(), y, rule, F.cross_entropy)
    found = {**{name: p.grad for name, p in model.named_parameters()}, "x": x.grad}
    assert worst({name: g / 2 for name, g in found.items()}, once) < 1e-12


def test_the_gradient_by_the_input_is_the_first_vertex_error_through_its_weights(
    compiled: Compile, gradients: Gradients
) -> None:
    x, y = SKIPS.batch(1)
    pc = compiled(SKIPS, pccompile.FixedPrediction(7, 0.3))
    found = gradients(pc, x, y)
    assert relative_error(found["x"][0], found["a.bias"] @ SKIPS.model().a.weight.detach()) < 1e-12


def test_the_gradient_by_the_input_needs_no_trainable_parameter() -> None:
    x, y = SKIPS.batch()
    rule = pccompile.FixedPrediction(7, 0.3)
    model = SKIPS.model().requires_grad_(False)
    pc = pccompile.compile(model, rule, F.cross_entropy, vertices="layers")
    x.requires_grad_()
    pc.loss(x, y).backward()
    assert relative_error(x.grad, expected(SKIPS, x.detach(), y, rule, F.cross_entropy)["x"]) < 1e-12
    assert all(p.grad is None for p in model.parameters())


def test_one_samples_gradient_does_not_depend_on_its_batch(compiled: Compile, gradients: Gradients) -> None:
    x, y = TIED.batch(4)
    pc = compiled(TIED, pccompile.FixedPrediction(5, 0.3))
    together = gradients(pc, x, y)
    one_by_one = [gradients(pc, x[i : i + 1], y[i : i + 1]) for i in range(4)]
    assert relative_error(4 * together["cell.weight"], sum(found["cell.weight"] for found in one_by_one)) < 1e-12
    assert relative_error(4 * together["x"], torch.cat([found["x"] for found in one_by_one])) < 1e-12


@pytest.mark.parametrize("levelled", [True, False], ids=["levelled", "as it is"])
@pytest.mark.parametrize("case", [CHAIN, TIED], ids=str)
def test_a_parameter_no_error_has_reached_has_a_gradient_of_zero(compiled: Compile, case: Case, levelled: bool) -> None:
    pc = compiled(case, pccompile.FixedPrediction(1, 0.3, levelled))
    parameters = list(pc.parameters())
    found = torch.autograd.grad(pc.loss(*case.batch()), parameters, allow_unused=True)
    assert all(gradient is not None for gradient in found)
    assert not found[0].any()
    assert found[-1].any()


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"steps": -3}, {"step_size": 0.0}, {"step_size": -0.1}, {"step_size": 1.5}, {"step_size": math.nan}],
    ids=str,
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(options)))):
        pccompile.FixedPrediction(**options)
