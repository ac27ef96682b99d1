"""Incremental predictive coding through `pc.step`, against its equations; and the optimised programs of every rule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hand_written import BLOCKS, CHAIN, CHAIN_NODES, SINGLE_OUTPUT_CASES, SKIPS, SKIPS_NODES, TIED, Case
from references import Compile, Gradients, Tensor, Tensors, incremental, worst
from torch import nn

import pccompile
from pccompile.errors import UsageError

MakeOptimizer = Callable[..., torch.optim.Optimizer]

SGD = partial(torch.optim.SGD, lr=0.1)
MOMENTUM = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
ADAM = partial(torch.optim.Adam, lr=0.01, eps=1e-4)


def summed_cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y, reduction="sum")


def learned_by_the_equations(
    case: Case, rule: pccompile.Incremental, optimizer: MakeOptimizer, calls: int = 1, loss_fn: Any = F.cross_entropy
) -> Tensors:
    """The parameters after some training steps of the transcription."""
    model, (x, y) = case.model(), case.batch()
    steps = optimizer(model.parameters())
    scale = len(x) if rule.batch_energy == "per_sample" and loss_fn is F.cross_entropy else 1
    for _ in range(calls):
        incremental(
            case.graph,
            dict(model.named_parameters()),
            x,
            lambda output: loss_fn(output, y),
            rule.steps,
            rule.step_size,
            steps,
            scale=float(scale),
            value_optimizer=rule.optimizer,
        )
    return {name: p.detach() for name, p in model.named_parameters()}


def learned_by_the_program(
    pc: pccompile.PCModule, case: Case, rule: pccompile.Incremental, optimizer: MakeOptimizer, calls: int = 1
) -> Tensors:
    """The parameters after as many calls of `pc.step`, which starts from the case's own parameters."""
    pc.load_state_dict(case.model().state_dict())
    pc.rule = rule
    steps = optimizer(pc.parameters())
    for _ in range(calls):
        pc.step(*case.batch(), steps)
    found = {name: p.detach().clone() for name, p in pc.named_parameters()}
    pc.load_state_dict(case.model().state_dict())
    return found


def moved(case: Case, parameters: Tensors) -> Tensors:
    """How far training moved the parameters."""
    start = dict(case.model().named_parameters())
    return {name: parameter - start[name].detach() for name, parameter in parameters.items()}


@pytest.mark.parametrize("optimize", [True, False], ids=["optimised", "literal"])
@pytest.mark.parametrize("case", SINGLE_OUTPUT_CASES, ids=str)
def test_incremental_steps_equal_the_equations(compiled: Compile, case: Case, optimize: bool) -> None:
    for steps in (1, 2, 5):
        rule = pccompile.Incremental(steps, 0.1)
        pc = compiled(case, rule, optimize=optimize)
        expected = moved(case, learned_by_the_equations(case, rule, SGD))
        actual = moved(case, learned_by_the_program(pc, case, rule, SGD))
        assert worst(actual, expected) < 1e-10, steps


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM], ids=["sgd", "momentum and decay", "adam"])
@pytest.mark.parametrize("case", [CHAIN, CHAIN_NODES, SKIPS, BLOCKS, TIED], ids=str)
def test_any_torch_optimizer_takes_the_parameter_steps(compiled: Compile, case: Case, optimizer: MakeOptimizer) -> None:
    rule = pccompile.Incremental(6, 0.2)
    expected = moved(case, learned_by_the_equations(case, rule, optimizer, calls=3))
    actual = moved(case, learned_by_the_program(compiled(case, rule), case, rule, optimizer, calls=3))
    assert worst(actual, expected) < 1e-8


@pytest.mark.parametrize(
    "options",
    [{"batch_energy": "as_given"}, {"optimizer": "momentum"}, {"step_size": 0.4}],
    ids=str,
)
def test_the_options_of_inference_mean_what_they_mean_for_strict(compiled: Compile, options: dict[str, Any]) -> None:
    rule = pccompile.Incremental(**{"steps": 5, "step_size": 0.1, **options})
    expected = moved(SKIPS, learned_by_the_equations(SKIPS, rule, SGD))
    assert worst(moved(SKIPS, learned_by_the_program(compiled(SKIPS, rule), SKIPS, rule, SGD)), expected) < 1e-10


def test_values_can_be_moved_by_adam(compiled: Compile) -> None:
    rule = pccompile.Incremental(5, 0.01, "adam")
    expected = moved(SKIPS, learned_by_the_equations(SKIPS, rule, SGD))
    assert worst(moved(SKIPS, learned_by_the_program(compiled(SKIPS, rule), SKIPS, rule, SGD)), expected) < 1e-6


def test_a_sum_reduced_loss_is_taken_as_it_is(compiled: Compile) -> None:
    rule = pccompile.Incremental(5, 0.1)
    pc = compiled(SKIPS, rule, summed_cross_entropy)
    expected = moved(SKIPS, learned_by_the_equations(SKIPS, rule, SGD, loss_fn=summed_cross_entropy))
    assert worst(moved(SKIPS, learned_by_the_program(pc, SKIPS, rule, SGD)), expected) < 1e-10


@pytest.mark.parametrize("case", [CHAIN, SKIPS_NODES], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_parameters_step_once_in_every_inference_step_and_no_further(
    compiled: Compile, case: Case, steps: int
) -> None:
    pc = compiled(case, pccompile.Incremental(steps, 0.1))
    optimizer = SGD(pc.parameters())
    taken = []
    optimizer.register_step_pre_hook(lambda *_: taken.append({n: p.grad is not None for n, p in pc.named_parameters()}))
    try:
        pc.step(*case.batch(), optimizer)
    finally:
        pc.load_state_dict(case.model().state_dict())
    assert len(taken) == steps
    assert all(p.grad is None or not p.grad.any() for p in pc.parameters())


def test_step_returns_the_loss_before_it(compiled: Compile) -> None:
    x, y = SKIPS.batch()
    before = F.cross_entropy(SKIPS.model()(x), y).item()
    pc = compiled(SKIPS, pccompile.Incremental(4, 0.1))
    try:
        found = pc.step(x, y, SGD(pc.parameters()))
    finally:
        pc.load_state_dict(SKIPS.model().state_dict())
    assert not found.requires_grad
    assert float(found) == pytest.approx(before, rel=1e-14)


def test_incremental_training_lowers_the_loss() -> None:
    x, y = CHAIN.batch(32)
    model = CHAIN.model()
    pc = pccompile.compile(model, pccompile.Incremental(5, 0.1), F.cross_entropy)
    optimizer = torch.optim.SGD(pc.parameters(), lr=0.1)
    losses = [float(pc.step(x, y, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.9 * losses[0]
    assert F.cross_entropy(model(x), y).item() < losses[-2]


def test_the_loss_of_an_incremental_program_has_no_gradient_to_ask_for(compiled: Compile) -> None:
    x, y = CHAIN.batch()
    pc = compiled(CHAIN, pccompile.Incremental())
    with pytest.raises(UsageError, match=r"pc\.step"):
        pc.loss(x, y)
    with torch.no_grad():
        expected = F.cross_entropy(CHAIN.model()(x), y).item()
        assert float(pc.loss(x, y)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    "rule", [pccompile.ZIL(), pccompile.FixedPrediction(5, 0.3), pccompile.Strict(5, 0.1)], ids=lambda rule: rule.name
)
def test_step_takes_one_ordinary_optimizer_step_under_the_other_rules(
    compiled: Compile, gradients: Gradients, rule: Any
) -> None:
    x, y = SKIPS.batch()
    pc = compiled(SKIPS, rule)
    expected = {name: -0.1 * g for name, g in gradients(pc, x, y).items() if name != "x"}
    found = moved(SKIPS, learned_by_the_program(pc, SKIPS, rule, SGD))
    assert worst(found, expected) < 1e-10


@pytest.mark.parametrize("options", [{"optimizer": "newton"}, {"steps": 0}, {"step_size": -1.0}, {"tolerance": -1.0}])
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        pccompile.Incremental(**options)


# The optimised program against the literal one ------------------------------------------------------------------------

RULES: list[Any] = [
    *(pccompile.FixedPrediction(steps, 0.3, levelled) for steps in (1, 2, 3, 6) for levelled in (True, False)),
    *(pccompile.Strict(steps, 0.2) for steps in (1, 2, 3, 6)),
    pccompile.Strict(6, 0.1, "momentum"),
    pccompile.Strict(6, 0.01, "adam"),
    pccompile.Strict(4, 0.2, learn_errors="previous"),
    pccompile.Strict(50, 0.2, tolerance=1e-2),
    pccompile.ZIL(),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("case", [CHAIN_NODES, SKIPS, SKIPS_NODES, BLOCKS, TIED], ids=str)
def test_optimised_and_literal_programs_give_the_same_gradients(
    compiled: Compile, gradients: Gradients, case: Case, rule: Any
) -> None:
    x, y = case.batch()
    literal = gradients(compiled(case, rule, optimize=False), x, y)
    assert worst(gradients(compiled(case, rule), x, y), literal) < 1e-11


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
@pytest.mark.parametrize("case", [CHAIN_NODES, SKIPS, SKIPS_NODES, BLOCKS, TIED], ids=str)
def test_optimised_and_literal_incremental_programs_train_the_same_parameters(
    compiled: Compile, case: Case, steps: int
) -> None:
    rule = pccompile.Incremental(steps, 0.1)
    literal, optimised = (
        moved(case, learned_by_the_program(compiled(case, rule, optimize=optimize), case, rule, SGD))
        for optimize in (False, True)
    )
    assert worst(optimised, literal) < 1e-10


def test_a_frozen_parameter_is_left_alone() -> None:
    model: nn.Sequential = CHAIN.build().double()
    model[2].weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    pc = pccompile.compile(model, pccompile.Incremental(4, 0.2), F.cross_entropy)
    pc.step(*CHAIN.batch(), torch.optim.SGD(pc.parameters(), lr=0.1))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(before) - {"2.weight"}
