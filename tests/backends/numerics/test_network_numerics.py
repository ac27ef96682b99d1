"""A small network's strict inference in one launch gives the eager back end's gradients and energies, to float32
rounding."""

import pytest
import torch
import torch.nn.functional as F
from test_chain_numerics import compiled, gradients, half_of_the_squares
from torch import nn

import pccompile
from pccompile.kernels import counting_launches


def pooled():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 4),
    )  # fmt: skip


def strided():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Tanh(),
        nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.GELU(), nn.AvgPool2d((1, 2)), nn.Flatten(),
        nn.Linear(4, 4),
    )  # fmt: skip


def batch(device, size, squared=False):
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, 1, 8, 8, generator=generator)
    target = torch.randn(size, 4, generator=generator) if squared else torch.randint(4, (size,), generator=generator)
    return x.to(device), target.to(device)


def agree(pc, x, y, tolerance=2e-5, sweeps=1):
    """Compare both back ends; the whole inference is one launch, and so are all gradients."""
    pc.backend = "eager"
    expected, energies = gradients(pc, x, y), pc.energies
    pc.backend = "triton"
    pc.prepare(x, y)
    with counting_launches() as launches:
        found = gradients(pc, x, y)
    assert (launches["network_sweep"], launches["network_gradients"]) == (sweeps, sweeps)
    floor = 0.1 * max(float(gradient.norm()) for gradient in expected[1:])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).norm()) <= tolerance * max(float(theirs.norm()), floor)
    if pc.record_energies:
        assert pc.energies == pytest.approx(energies, rel=1e-5)
    return launches


def test_a_pooled_network_takes_two_launches_beside_its_prediction(device):
    pc = compiled(pooled(), pccompile.Strict(5, 0.3), device)
    launches = agree(pc, *batch(device, 2))
    assert launches == {
        "conv_predict": 2,
        "linear_predict": 2,
        "cross_entropy_predict": 1,
        "network_sweep": 1,
        "network_gradients": 1,
    }
    pc.rule = pccompile.Strict(2, 0.1)
    backend = pc._latest.backend
    agree(pc, *batch(device, 2))
    assert pc._latest.backend is backend and "network_sweep" in pc.code


@pytest.mark.parametrize(
    "learn_errors, batch_energy, squared",
    [("current", "per_sample", False), ("previous", "as_given", True)],
)
def test_options_momentum_and_energies(device, learn_errors, batch_energy, squared):
    rule = pccompile.Strict(3, 0.2, "momentum", 0.6, learn_errors=learn_errors, batch_energy=batch_energy)
    pc = compiled(strided(), rule, device, half_of_the_squares if squared else F.cross_entropy)
    pc.record_energies = True
    # A small loss moves values by little, and an error is the difference of a value and a prediction near one.
    agree(pc, *batch(device, 2, squared), tolerance=1e-4)


def test_frozen_parameters_have_no_gradient(device):
    model = strided()
    model[0].requires_grad_(False)
    agree(compiled(model, pccompile.Strict(3, 0.2), device), *batch(device, 1))


def test_inference_that_diverges_names_a_layer_that_is_not_finite(device):
    pc = compiled(strided(), pccompile.Strict(4, 1e30), device, half_of_the_squares)
    with pytest.raises(pccompile.errors.NonFiniteError, match=r"is not finite"):
        pc.loss(*batch(device, 2, squared=True)).backward()


def test_a_network_with_groups_runs_layer_by_layer_and_the_report_says_why(device):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 2, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4)
    )
    pc = compiled(model, pccompile.Strict(2, 0.2), device)
    agree(pc, *batch(device, 1), sweeps=0)
    assert pc.backend_report().notes == ("not all steps in one launch: layer 2 has 2 groups",)
