"""Strict inference learning against its equations written out in `references`, and what they promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hand_written import (
    BLOCKS,
    CHAIN,
    CHAIN_MODULES,
    CHAIN_NODES,
    SINGLE_OUTPUT_CASES,
    SKIPS,
    SKIPS_NODES,
    TIED,
    TWO_HEADS,
    Case,
)
from references import Compile, Gradients, Result, Tensor, clamped_tensors, relative_error, strict, worst
from torch import nn

import pccompile
from pccompile.errors import UsageError


def summed_cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y, reduction="sum")


def squared_error(output: Tensor, y: Tensor) -> Tensor:
    return ((output - F.one_hot(y, 4)) ** 2).sum(dim=1).mean() / 2


def summed_squared_error(output: Tensor, y: Tensor) -> Tensor:
    return ((output - F.one_hot(y, 4)) ** 2).sum() / 2


def both_heads(outputs: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    return F.cross_entropy(outputs[1], y) + (outputs[0] ** 2).sum(dim=1).mean()


MEANS = [F.cross_entropy, squared_error]
SUMS = [summed_cross_entropy, summed_squared_error]


def expected(case: Case, x: Tensor, y: Tensor, loss_fn: Callable[..., Tensor], rule: pccompile.Strict) -> Result:
    """The transcription with a rule's options, each spelled out."""
    mean = loss_fn in (F.cross_entropy, squared_error, both_heads)
    return strict(
        case.graph,
        clamped_tensors(case.model(), x),
        (lambda hidden, output: both_heads((hidden, output), y))
        if loss_fn is both_heads
        else (lambda output: loss_fn(output, y)),
        rule.steps,
        rule.step_size,
        scale=float(len(x)) if mean and rule.batch_energy == "per_sample" else 1.0,
        optimizer=rule.optimizer,
        momentum=rule.momentum,
        betas=rule.betas,
        epsilon=rule.epsilon,
        learn_errors=rule.learn_errors,
        tolerance=rule.tolerance,
    )


def assert_energies(pc: pccompile.PCModule, reference: Result) -> None:
    """Those of the steps that moved, and what may be recorded after them."""
    assert reference.moves <= len(pc.energies) <= reference.moves + 1
    assert pc.energies == pytest.approx(reference.energies[: len(pc.energies)], rel=1e-12)


# The equations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", [True, False], ids=["optimised", "literal"])
@pytest.mark.parametrize("case", SINGLE_OUTPUT_CASES, ids=str)
def test_strict_gradients_and_energies_equal_the_equations(
    compiled: Compile, gradients: Gradients, case: Case, optimize: bool
) -> None:
    x, y = case.batch()
    for steps, step_size in ((1, 0.1), (2, 0.3), (3, 0.1), (7, 0.2), (20, 0.1)):
        rule = pccompile.Strict(steps, step_size)
        pc = compiled(case, rule, optimize=optimize)
        pc.record_energies = True
        reference = expected(case, x, y, F.cross_entropy, rule)
        assert worst(gradients(pc, x, y), reference.gradients) < 1e-12, (steps, step_size)
        assert_energies(pc, reference)


@pytest.mark.parametrize("batch_energy", ["per_sample", "as_given"])
@pytest.mark.parametrize("learn_errors", ["current", "previous"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.parametrize("case", [CHAIN, CHAIN_NODES, CHAIN_MODULES, SKIPS, BLOCKS], ids=str)
def test_every_option_of_strict_means_what_the_equations_say(
    compiled: Compile, gradients: Gradients, case: Case, optimizer: Any, learn_errors: Any, batch_energy: Any
) -> None:
    x, y = case.batch()
    for loss_fn in MEANS + SUMS if case is SKIPS else [F.cross_entropy]:
        for steps, step_size in ((1, 0.2), (2, 0.2), (6, 0.1)):
            rule = pccompile.Strict(
                steps, step_size, optimizer, learn_errors=learn_errors, batch_energy=batch_energy, momentum=0.8
            )
            reference = expected(case, x, y, loss_fn, rule)
            actual = gradients(compiled(case, rule, loss_fn), x, y)
            assert worst(actual, reference.gradients) < 1e-11, (loss_fn, steps)


@pytest.mark.parametrize("learn_errors", ["current", "previous"])
@pytest.mark.parametrize("batch_energy", ["per_sample", "as_given"])
@pytest.mark.parametrize("case", [CHAIN, CHAIN_NODES, SKIPS, BLOCKS], ids=str)
def test_values_moved_by_adam_equal_the_equations(
    compiled: Compile, gradients: Gradients, case: Case, batch_energy: Any, learn_errors: Any
) -> None:
    x, y = case.batch()
    for betas, epsilon in (((0.9, 0.999), 1e-4), ((0.5, 0.7), 1e-3)):
        for steps in (1, 2, 3, 10):
            rule = pccompile.Strict(
                steps,
                0.01,
                "adam",
                betas=betas,
                epsilon=epsilon,
                learn_errors=learn_errors,
                batch_energy=batch_energy,
            )
            reference = expected(case, x, y, F.cross_entropy, rule)
            assert worst(gradients(compiled(case, rule), x, y), reference.gradients) < 1e-9, (steps, betas)


def test_the_options_are_told_apart() -> None:
    x, y = SKIPS.batch()
    rules = [
        pccompile.Strict(6, 0.1),
        pccompile.Strict(6, 0.1, "momentum"),
        pccompile.Strict(6, 0.1, "adam"),
        pccompile.Strict(6, 0.1, learn_errors="previous"),
        pccompile.Strict(6, 0.1, batch_energy="as_given"),
    ]
    found = [expected(SKIPS, x, y, F.cross_entropy, rule).gradients for rule in rules]
    for i, first in enumerate(found):
        for second in found[i + 1 :]:
            assert worst(first, second) > 1e-3


@pytest.mark.parametrize("case", [SKIPS_NODES, TIED], ids=str)
def test_previous_errors_are_learned_on_skips_of_nodes_and_tied_weights(
    compiled: Compile, gradients: Gradients, case: Case
) -> None:
    x, y = case.batch()
    for steps in (1, 2, 5):
        rule = pccompile.Strict(steps, 0.2, learn_errors="previous")
        reference = expected(case, x, y, F.cross_entropy, rule)
        assert worst(gradients(compiled(case, rule), x, y), reference.gradients) < 1e-12


@pytest.mark.parametrize("optimize", [True, False], ids=["optimised", "literal"])
def test_a_hidden_value_that_the_loss_reads_too_has_an_identity_as_output_vertex(
    compiled: Compile, gradients: Gradients, optimize: bool
) -> None:
    x, y = TWO_HEADS.batch()
    for steps in (1, 2, 8):
        rule = pccompile.Strict(steps, 0.2)
        reference = expected(TWO_HEADS, x, y, both_heads, rule)
        pc = compiled(TWO_HEADS, rule, both_heads, optimize)
        assert worst(gradients(pc, x, y), reference.gradients) < 1e-12


BROADCASTING = {
    "mse_loss": (F.mse_loss, torch.square),
    "MSELoss": (nn.MSELoss(), torch.square),
    "l1_loss": (F.l1_loss, torch.abs),
}


@pytest.mark.parametrize(("loss_fn", "written"), BROADCASTING.values(), ids=BROADCASTING)
def test_a_loss_that_broadcasts_what_it_compares_leaves_the_output_to_its_prediction(
    loss_fn: Any, written: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 4).double(), torch.randn(6, 3).double()
    found = []
    for function in (loss_fn, lambda output, target: written(output - target).mean()):
        pc = pccompile.compile(model, pccompile.Strict(steps=3, step_size=0.2), function)
        model.zero_grad()
        pc.loss(x, y).backward()
        assert [v.kind.value for v in pc.program.vertices if v.nodes] == ["hidden", "output", "loss"]
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_scaled_loss_scales_the_gradients_and_leaves_the_inference_alone(
    compiled: Compile, gradients: Gradients
) -> None:
    x, y = SKIPS.batch()
    pc = compiled(SKIPS, pccompile.Strict(6, 0.2))
    once = gradients(pc, x, y)
    parameters = dict(pc.named_parameters())
    scaled = torch.autograd.grad(1000 * pc.loss(x, y), list(parameters.values()))
    assert worst({name: g / 1000 for name, g in zip(parameters, scaled, strict=True)}, once) < 1e-12


def test_the_value_of_the_loss_is_that_of_the_feed_forward_pass(compiled: Compile) -> None:
    x, y = SKIPS.batch()
    pc = compiled(SKIPS, pccompile.Strict(6, 0.2))
    assert float(pc.loss(x, y).detach()) == pytest.approx(F.cross_entropy(SKIPS.model()(x), y).item(), rel=1e-14)


@pytest.mark.parametrize("learn_errors", ["current", "previous"])
def test_a_parameter_no_error_has_reached_has_a_gradient_of_zero(learn_errors: Any) -> None:
    model = CHAIN.model()
    rule = pccompile.Strict(1, 0.2, learn_errors=learn_errors)
    pccompile.compile(model, rule, F.cross_entropy).loss(*CHAIN.batch()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not model[0].weight.grad.any()
    assert model[4].weight.grad.any()


def test_changing_a_scalar_option_compiles_nothing_again(compiled: Compile, gradients: Gradients) -> None:
    x, y = CHAIN.batch()
    pc = compiled(CHAIN, pccompile.Strict(3, 0.1))
    gradients(pc, x, y)
    program = pc.program
    for rule in (
        pccompile.Strict(9, 0.3),
        pccompile.Strict(3, 0.1, "adam"),
        pccompile.Strict(3, 0.1, "momentum", momentum=0.5),
        pccompile.Strict(3, 0.1, batch_energy="as_given"),
    ):
        pc.rule = rule
        gradients(pc, x, y)
        assert pc.program is program


# The energy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SINGLE_OUTPUT_CASES, ids=str)
def test_the_energy_never_rises_for_a_small_step(compiled: Compile, gradients: Gradients, case: Case) -> None:
    x, y = case.batch()
    for loss_fn in MEANS + SUMS if case is SKIPS else [F.cross_entropy]:
        pc = compiled(case, pccompile.Strict(40, 0.02), loss_fn)
        pc.record_energies = True
        gradients(pc, x, y)
        assert len(pc.energies) >= 40
        assert all(after <= before for before, after in pairwise(pc.energies))
        assert pc.energies[-1] < 0.99 * pc.energies[0]


def test_the_energy_starts_as_the_loss_since_no_error_is_there_yet(compiled: Compile, gradients: Gradients) -> None:
    x, y = SKIPS.batch()
    loss = F.cross_entropy(SKIPS.model()(x), y).item()
    for batch_energy, factor in (("per_sample", len(x)), ("as_given", 1)):
        pc = compiled(SKIPS, pccompile.Strict(3, 0.1, batch_energy=batch_energy))
        pc.record_energies = True
        gradients(pc, x, y)
        assert pc.energies[0] == pytest.approx(factor * loss, rel=1e-12)


@pytest.mark.parametrize("optimize", [True, False], ids=["optimised", "literal"])
@pytest.mark.parametrize("learn_errors", ["current", "previous"])
@pytest.mark.parametrize("case", [CHAIN, SKIPS, SKIPS_NODES], ids=str)
def test_inference_stops_when_the_energy_changes_by_less_than_the_tolerance(
    compiled: Compile, gradients: Gradients, case: Case, learn_errors: Any, optimize: bool
) -> None:
    x, y = case.batch()
    numbers_of_moves = set()
    for tolerance in (0.9, 3e-2, 6e-3):
        rule = pccompile.Strict(60, 0.1, tolerance=tolerance, learn_errors=learn_errors)
        reference = expected(case, x, y, F.cross_entropy, rule)
        pc = compiled(case, rule, optimize=optimize)
        pc.record_energies = True
        assert worst(gradients(pc, x, y), reference.gradients) < 1e-12, tolerance
        assert_energies(pc, reference)
        numbers_of_moves.add(reference.moves)
    assert len(numbers_of_moves) >= 2
    assert max(numbers_of_moves) < 60


def test_stopping_early_equals_running_only_that_many_steps(compiled: Compile, gradients: Gradients) -> None:
    x, y = SKIPS.batch()
    rule = pccompile.Strict(60, 0.1, tolerance=1e-2)
    moves = expected(SKIPS, x, y, F.cross_entropy, rule).moves
    assert 2 < moves < 60
    stopped = gradients(compiled(SKIPS, rule), x, y)
    assert worst(stopped, gradients(compiled(SKIPS, pccompile.Strict(moves, 0.1)), x, y)) < 1e-14
    assert worst(stopped, gradients(compiled(SKIPS, pccompile.Strict(moves + 1, 0.1)), x, y)) > 1e-6


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("loss_fn", [F.cross_entropy, squared_error, summed_cross_entropy])
@pytest.mark.parametrize("case", [SKIPS], ids=str)
def test_one_samples_inference_does_not_depend_on_its_batch(
    compiled: Compile, gradients: Gradients, case: Case, loss_fn: Callable[..., Tensor], optimizer: Any
) -> None:
    x, y = case.batch(6)
    pc = compiled(case, pccompile.Strict(8, 0.1, optimizer, epsilon=1e-4), loss_fn)
    together = gradients(pc, x, y)
    one_by_one = [gradients(pc, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    samples = 1 if loss_fn is summed_cross_entropy else len(x)
    inputs = torch.cat([found["x"] for found in one_by_one])
    summed = {name: sum(found[name] for found in one_by_one) for name in together if name != "x"}
    assert worst({name: samples * together[name] for name in summed}, summed) < 1e-11
    assert relative_error(samples * together["x"], inputs) < 1e-11


def test_the_loss_as_given_moves_a_sample_less_in_a_larger_batch(compiled: Compile, gradients: Gradients) -> None:
    x, y = SKIPS.batch(6)
    pc = compiled(SKIPS, pccompile.Strict(8, 0.1, batch_energy="as_given"))
    together = gradients(pc, x, y)
    one_by_one = [gradients(pc, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    assert relative_error(6 * together["a.weight"], sum(found["a.weight"] for found in one_by_one)) > 1e-3


def test_a_mean_and_a_sum_descend_the_same_energy_per_sample(compiled: Compile, gradients: Gradients) -> None:
    x, y = SKIPS.batch()
    rule = pccompile.Strict(8, 0.1)
    mean = gradients(compiled(SKIPS, rule, F.cross_entropy), x, y)
    total = gradients(compiled(SKIPS, rule, summed_cross_entropy), x, y)
    assert worst({name: len(x) * gradient for name, gradient in mean.items()}, total) < 1e-12


# Torch2PC -------------------------------------------------------------------------------------------------------------


def torch2pc_strict(layers: list[nn.Module], x: Tensor, y: Tensor, steps: int, step_size: float) -> list[Tensor]:
    """Torch2PC's Strict: top down, each error read before its value moves; Learn with those errors, values as moved.

    Returns:
        The gradients in the order of the layers' parameters.
    """
    with torch.no_grad():
        values = [x]
        for layer in layers:
            values.append(layer(values[-1]))
    errors: list[Tensor] = list(values)
    for _ in range(steps):
        output = layers[-1](values[-2]).detach().requires_grad_()
        errors[-1] = torch.autograd.grad(F.cross_entropy(output, y), output)[0]
        for index in reversed(range(1, len(layers))):
            with torch.no_grad():
                errors[index] = layers[index - 1](values[index - 1]) - values[index]
            value = values[index].detach().requires_grad_()
            pulled = torch.autograd.grad(layers[index](value), value, errors[index + 1])[0]
            values[index] = values[index] + step_size * (errors[index] - pulled)
    found: list[Tensor] = []
    for index, layer in enumerate(layers):
        parameters = list(layer.parameters())
        found += torch.autograd.grad(layer(values[index]), parameters, errors[index + 1])
    return found


def published_network() -> nn.Sequential:
    """The convolutional network of the paper that introduced Torch2PC, for 28x28 images."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(10, 5, 3), nn.ReLU(), nn.Flatten()),
        nn.Sequential(nn.Linear(5 * 11 * 11, 50), nn.ReLU()),
        nn.Sequential(nn.Linear(50, 30), nn.ReLU()),
        nn.Sequential(nn.Linear(30, 10)),
    )


def test_strict_with_previous_errors_and_the_loss_as_given_is_torch2pc() -> None:
    model = published_network().double()
    x, y = torch.randn(4, 1, 28, 28, dtype=torch.float64), torch.randint(0, 10, (4,))
    rule = pccompile.Strict(5, 0.1, learn_errors="previous", batch_energy="as_given")
    pc = pccompile.compile(model, rule, F.cross_entropy, vertices="layers")
    pc.loss(x, y).backward()
    actual = {name: p.grad for name, p in model.named_parameters()}
    reference = dict(zip(actual, torch2pc_strict(list(model), x, y, 5, 0.1), strict=True))
    assert worst(actual, reference) < 1e-12


def test_the_published_divergence_from_backpropagation_is_reproduced() -> None:
    model = published_network()
    x, y = torch.rand(300, 1, 28, 28), torch.randint(0, 10, (300,))
    exact = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    rule = pccompile.Strict(20, 0.1, learn_errors="previous", batch_energy="as_given")
    pc = pccompile.compile(model, rule, F.cross_entropy, vertices="layers")
    found = torch.autograd.grad(pc.loss(x, y), list(model.parameters()))
    divergence = [relative_error(g, e) for g, e in zip(found, exact, strict=True)]
    weights = divergence[::2]
    print("relative error of each layer's weight:", weights)
    assert all(above < below for below, above in pairwise(weights))
    assert 0.5 < weights[0] < 1.0
    assert 1e-3 < weights[-1] < 0.05


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "rmsprop"},
        {"steps": 0},
        {"steps": -1},
        {"step_size": -0.1},
        {"step_size": 0.0},
        {"step_size": math.nan},
        {"tolerance": -1e-3},
        {"learn_errors": "next"},
        {"batch_energy": "per_batch"},
    ],
    ids=str,
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(options)))):
        pccompile.Strict(**options)


def test_strict_refuses_to_run_without_a_loss() -> None:
    pc = pccompile.compile(CHAIN.model(), pccompile.Strict())
    with pytest.raises(UsageError, match="loss"):
        pc(CHAIN.batch()[0])


@pytest.mark.parametrize("options", [{"optimize": False}, {"backend": "eager"}, {"backend": "aten"}], ids=str)
@pytest.mark.parametrize("vertices", ["layers", [""]], ids=["one layer", "the whole model"])
def test_where_no_value_moves_the_gradients_are_autograds(vertices, options):
    layers = [nn.Linear(4, 3)] if vertices == "layers" else [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)]
    model, x, y = nn.Sequential(*layers).double(), torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    expected = torch.autograd.grad(2 * F.cross_entropy(model(x), y), list(model.parameters()))
    pc = pccompile.compile(model, pccompile.Strict(4, 0.2), F.cross_entropy, vertices=vertices, **options)
    (2 * pc.loss(x, y)).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)
