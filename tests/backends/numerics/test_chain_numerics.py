"""A chain's strict inference in one launch gives the eager back end's gradients and energies, to float32 rounding."""

from itertools import cycle, pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile
from pccompile.kernels import counting_launches

ACTIVATIONS = [
    nn.Tanh(), nn.ReLU(), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Softplus(),
]  # fmt: skip
WIDTHS = (33, 20, 7, 12, 5)


def stack(depth, activations=ACTIVATIONS, bias=True):
    torch.manual_seed(depth)
    layers = [
        layer
        for (a, b), activation in zip(pairwise(WIDTHS[: depth + 1]), cycle(activations), strict=False)
        for layer in (nn.Linear(a, b, bias=bias), activation)
    ]
    return nn.Sequential(*layers[:-1])


def batch(device, size, classes, squared=False):
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, WIDTHS[0], generator=generator)
    if squared:
        target = torch.randn(size, classes, generator=generator)
    else:
        target = torch.randint(0, classes, (size,), generator=generator)
    return x.to(device), target.to(device)


def compiled(model, rule, device, loss_fn=F.cross_entropy, backend="triton"):
    return pccompile.compile(
        model.to(device), rule, loss_fn=loss_fn, backend=backend, dynamic=False, verify=False, vertices="layers"
    )


def gradients(pc, x, y):
    loss = pc.loss(x, y)
    learned = [parameter for parameter in pc.model.parameters() if parameter.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, learned)]


def agree(pc, x, y, tolerance=2e-5, sweeps=1):
    """Compare both back ends; the whole inference is one launch, and so are all gradients."""
    pc.backend = "eager"
    expected, energies = gradients(pc, x, y), pc.energies
    pc.backend = "triton"
    pc.prepare(x, y)
    with counting_launches() as launches:
        found = gradients(pc, x, y)
    assert (launches["strict_sweep"], launches["chain_gradients"]) == (sweeps, sweeps)
    floor = 0.1 * max(float(gradient.norm()) for gradient in expected[1:])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).norm()) <= tolerance * max(float(theirs.norm()), floor)
    if pc.record_energies:
        assert pc.energies == pytest.approx(energies, rel=1e-5)
    return launches


@pytest.mark.parametrize("depth, size", [(2, 5), (3, 1), (4, 5)])
def test_cross_entropy_at_every_depth(device, depth, size):
    pc = compiled(stack(depth), pccompile.Strict(4, 0.2), device)
    launches = agree(pc, *batch(device, size, WIDTHS[depth]))
    assert launches == {"linear_predict": depth, "cross_entropy_predict": 1, "strict_sweep": 1, "chain_gradients": 1}


@pytest.mark.parametrize("depth, size", [(2, 1), (3, 5)])
def test_squared_error_at_every_depth(device, depth, size):
    pc = compiled(stack(depth), pccompile.Strict(4, 0.2), device, F.mse_loss)
    launches = agree(pc, *batch(device, size, WIDTHS[depth], squared=True))
    assert launches == {"linear_predict": depth, "strict_sweep": 1, "chain_gradients": 1}


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_every_activation(device, activation):
    agree(compiled(stack(3, [activation]), pccompile.Strict(3, 0.3), device), *batch(device, 5, WIDTHS[3]))


@pytest.mark.parametrize(
    "learn_errors, batch_energy, squared",
    [
        ("current", "per_sample", False),
        ("previous", "as_given", False),
        ("current", "as_given", True),
        ("previous", "per_sample", True),
    ],
)
def test_options_momentum_and_energies(device, learn_errors, batch_energy, squared):
    rule = pccompile.Strict(3, 0.2, "momentum", 0.6, learn_errors=learn_errors, batch_energy=batch_energy)
    pc = compiled(stack(3), rule, device, F.mse_loss if squared else F.cross_entropy)
    pc.record_energies = True
    # A small loss moves values by little, and an error is the difference of a value and a prediction near one.
    agree(pc, *batch(device, 5, WIDTHS[3], squared), tolerance=1e-4)


def total(output, target):
    return F.cross_entropy(output, target, reduction="sum")


def half_of_the_squares(output, target):
    return 0.5 * F.mse_loss(output, target, reduction="sum")


@pytest.mark.parametrize("loss_fn, squared", [(total, False), (half_of_the_squares, True)])
def test_sums_over_the_batch(device, loss_fn, squared):
    pc = compiled(stack(3), pccompile.Strict(3, 0.1), device, loss_fn)
    agree(pc, *batch(device, 5, WIDTHS[3], squared))


def test_samples_that_are_ignored_are_not_in_the_mean(device):
    x, y = batch(device, 5, WIDTHS[2])
    y[2] = y[4] = -100
    agree(compiled(stack(2), pccompile.Strict(3, 0.2), device), x, y)


def test_fewer_steps_than_layers_and_no_bias(device):
    pc = compiled(stack(4, bias=False), pccompile.Strict(1, 0.2), device)
    agree(pc, *batch(device, 5, WIDTHS[4]))
    pc.rule = pccompile.Strict(2, 0.2)
    agree(pc, *batch(device, 5, WIDTHS[4]))


def test_tied_and_frozen_layers(device):
    shared = nn.Linear(20, 20)
    model = nn.Sequential(nn.Linear(33, 20), nn.Tanh(), shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(20, 7))
    agree(compiled(model, pccompile.Strict(4, 0.2), device), *batch(device, 5, 7))
    model[0].requires_grad_(False)
    shared.bias.requires_grad_(False)
    agree(compiled(model, pccompile.Strict(4, 0.2), device), *batch(device, 5, 7))


def test_images_are_flattened_before_the_first_layer(device):
    x, y = batch(device, 5, 7)
    agree(compiled(nn.Sequential(nn.Flatten(), *stack(2)), pccompile.Strict(3, 0.2), device), x.view(5, 3, 11), y)


def test_training_for_several_steps(device):
    x, y = batch(device, 5, WIDTHS[3])
    weights = {}
    for backend in ("eager", "triton"):
        model = stack(3)
        pc = compiled(model, pccompile.Strict(4, 0.2), device, backend=backend)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(4):
            optimizer.zero_grad()
            pc.loss(x, y).backward()
            optimizer.step()
        weights[backend] = [parameter.detach() for parameter in model.parameters()]
    for ours, theirs in zip(*weights.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_second_backward_pass_and_a_scaled_loss(device):
    x, y = batch(device, 5, WIDTHS[3])
    pc = compiled(model := stack(3), pccompile.Strict(3, 0.2), device)
    loss, parameters = pc.loss(x, y), list(model.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    scaled = torch.autograd.grad(4 * loss, parameters)
    assert all(torch.equal(4 * a, b) for a, b in zip(first, scaled, strict=True))


def test_steps_and_step_size_change_without_compiling_or_choosing_again(device):
    pc = compiled(stack(3), pccompile.Strict(3, 0.2), device)
    x, y = batch(device, 5, WIDTHS[3])
    pc.loss(x, y).backward()
    backend = pc._latest.backend
    plans, verdicts = dict(backend.plans), dict(backend.verdicts)
    for rule in (pccompile.Strict(7, 0.2), pccompile.Strict(7, 0.05)):
        pc.rule = rule
        agree(pc, x, y)
        assert pc._latest.backend is backend
        assert (backend.plans, backend.verdicts) == (plans, verdicts)
        (row,) = [row for row in pc.backend_report() if row.kernel == "strict_sweep"]
        assert row.launches == 1 and row.phase == "all steps"


def test_inference_that_diverges_names_the_first_layer_that_is_not_finite(device):
    x, y = batch(device, 5, WIDTHS[3], squared=True)
    pc = compiled(stack(3, [nn.ReLU()]), pccompile.Strict(4, 1e30), device, half_of_the_squares)
    with pytest.raises(pccompile.errors.NonFiniteError, match=r"of 0 is not finite"):
        pc.loss(x, y).backward()


def test_float64_runs_as_operators_and_the_report_says_why(device):
    x, y = batch(device, 5, WIDTHS[2])
    pc = compiled(stack(2).double(), pccompile.Strict(3, 0.2), device)
    agree(pc, x.double(), y, sweeps=0)
    assert pc.backend_report().notes == ("not all steps in one launch: float64 has no kernel",)
