"""Z-IL is backpropagation, and every optimised program is its literal one."""

import pytest
import torch
from models import NAMES, RULES, loss_fn, make

import pccompile


@pytest.mark.parametrize("name", NAMES)
def test_zil_gradients_equal_autograd_in_float64(name):
    model, inputs, target = make(name, torch.float64)
    report = pccompile.check(pccompile.compile(model, loss_fn=loss_fn), inputs, target)
    assert report.rows
    assert report.relative_error <= 1e-12, report


@pytest.mark.parametrize("name", NAMES)
def test_zil_gradients_equal_autograd_bit_for_bit_in_float32(name):
    model, inputs, target = make(name)
    assert model.training
    report = pccompile.check(pccompile.compile(model, loss_fn=loss_fn), inputs, target)
    assert report.bit_equal, report


@pytest.mark.parametrize("name", NAMES)
def test_zil_with_the_loss_outside_equals_autograd_bit_for_bit(name):
    model, inputs, target = make(name)
    report = pccompile.check(pccompile.compile(model), inputs, target, loss_fn=loss_fn)
    assert report.bit_equal, report


def gradients(pc, inputs, target):
    torch.manual_seed(1)
    return torch.autograd.grad(pc.loss(inputs, target), list(pc.parameters()), allow_unused=True)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", NAMES)
def test_the_optimised_program_agrees_with_the_literal_one(name, rule):
    model, inputs, target = make(name, torch.float64)
    optimised = gradients(pccompile.compile(model, rule, loss_fn=loss_fn, dynamic=False), inputs, target)
    literal = gradients(pccompile.compile(model, rule, loss_fn=loss_fn, dynamic=False, optimize=False), inputs, target)
    difference = sum(float((a - b).square().sum()) for a, b in zip(optimised, literal, strict=True) if b is not None)
    size = sum(float(b.square().sum()) for b in literal if b is not None)
    assert [a is None for a in optimised] == [b is None for b in literal]
    assert difference <= 1e-22 * size


@pytest.mark.parametrize("name", NAMES)
def test_an_optimised_zil_program_runs_each_update_in_one_step_and_has_few(name):
    model, inputs, target = make(name)
    pc = pccompile.compile(model, loss_fn=loss_fn)
    program = pc.prepare(inputs, target)
    assert all(update.span.single for update in program.schedule)
    assert len(program.schedule) <= 3 * len(program.graph)
    assert not [vertex for vertex in program.vertices if vertex.kind.value == "delay"]
