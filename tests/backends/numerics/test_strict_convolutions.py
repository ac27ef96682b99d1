"""In a loop of strict inference a hidden convolution is one launch a step, and the gradients stay the eager ones."""

import copy

import pytest
import torch
import torch.nn.functional as F
from emulated_graphs import EmulatedRecorder
from test_patterns_numerics import cifar_cnn, images, mnist_cnn
from test_residual_numerics import Residual
from test_triton_numerics import ACTIVATIONS, agree, compiled, norm, step
from torch import nn

import pccompile
from pccompile.backends import aten

RULE = pccompile.Strict(steps=3, step_size=0.3)


def small(*activations):
    """Two hidden convolutions, the first with a pooling, for images of 5 x 5."""
    torch.manual_seed(0)
    first, second = activations or (nn.SiLU(), nn.Tanh())
    pooled = nn.Conv2d(3, 3, 2), first, nn.MaxPool2d(2), nn.Conv2d(3, 2, 1, bias=False), second
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.Tanh(), *pooled, nn.Flatten(), nn.Linear(8, 3))


def strided():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh()),
        *(nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.Tanh()),
        *(nn.Conv2d(6, 6, (2, 1), dilation=2, groups=3), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(6, 6, 1, groups=6), nn.Sigmoid(), nn.Flatten(), nn.Linear(18, 3)),
    )


class Skip(nn.Module):
    """A block that adds what it reads, and a hidden convolution behind it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 2)
        self.head = nn.Linear(18, 3)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        h = h + torch.relu(self.b(h))
        return self.head(F.silu(self.c(h)).flatten(1))


@pytest.fixture(autouse=True)
def _layer_by_layer(monkeypatch):
    """Networks as small as these would be one launch for all steps."""
    monkeypatch.setattr("pccompile.backends.network.too_large", lambda *network: "a test of layers")


def every_step(pc):
    return [row for row in pc.backend_report() if row.phase == "every step"]


PAIRS = [*zip(ACTIVATIONS[:4], ACTIVATIONS[4:], strict=True), (nn.Identity(), nn.ReLU())]
OUTPUT = {"linear_predict": 1, "linear_error": 1}


@pytest.mark.parametrize(
    "make, channels, size, expected",
    [
        (mnist_cnn, 1, 8, {"conv_step": 1, "linear_step": 2, **OUTPUT}),
        (cifar_cnn, 2, 6, {"conv_step": 2, **OUTPUT}),
        (strided, 2, 5, {"conv_step": 3, **OUTPUT}),
        (Skip, 2, 4, {"conv_step": 1, "conv_predict": 1, "conv_error": 1, **OUTPUT}),
    ],
    ids=["mnist", "cifar", "strided", "skip"],
)
def test_a_hidden_convolution_is_one_launch_in_every_step(device, make, channels, size, expected):
    pc, given = compiled(make(), device), images(device, channels, size)
    three = agree(pc, RULE, *given, tolerance=3e-5)
    pc.rule = pccompile.Strict(steps=4, step_size=0.3)
    launches = step(pc, *given)[1] - three
    launches.pop("pointwise", None)
    assert launches == expected
    rows = every_step(pc)
    assert sum(row.kernel == "conv_step" for row in rows) == expected["conv_step"]
    assert not [row for row in rows if row.kernel == "aten" and row.operations]  # no convolution is left


def test_the_report_says_what_is_not_one_launch_and_why(device):
    pc = compiled(Skip(), device)
    agree(pc, RULE, *images(device, 2, 4), tolerance=3e-5)
    told = {(row.vertices[0], row.kernel): row.reason for row in every_step(pc)}
    assert told["c", "conv_step"] == "not measured"
    assert told["b", "conv_error"] == "not measured; no conv_step: its error is not v - pool(act(x * W + b))"
    assert "conv_step (not measured)" in pc.explain("c")


@pytest.mark.parametrize("activations", PAIRS, ids=str)
def test_every_activation(device, activations):
    launches = agree(compiled(small(*activations), device), RULE, *images(device, 2, 5), tolerance=3e-5)
    assert launches["conv_step"] == 2 * 2  # two layers, in all steps but the first


@pytest.mark.parametrize(
    "rule",
    [
        pccompile.Strict(4, 0.2, "momentum", 0.6, learn_errors="previous"),
        pccompile.Strict(3, 0.02, "adam", batch_energy="as_given"),
        pccompile.Strict(4, 0.2, tolerance=1e-9),
        pccompile.Strict(2, 0.2),
    ],
    ids=["momentum", "adam", "tolerance", "two steps"],
)
def test_options_of_the_rule(device, rule):
    launches = agree(compiled(small(), device), rule, *images(device, 2, 5, 1), tolerance=1e-4)
    assert launches["conv_step"] == 2 * (rule.steps - 1)


def test_energies_of_every_step(device):
    pc, (x, y) = compiled(small(), device), images(device, 2, 5)
    pc.rule, pc.record_energies, energies = RULE, True, []
    for pc.backend in ("eager", "triton"):
        pc.loss(x, y).backward()
        energies.append(pc.energies)
    assert energies[1] == pytest.approx(energies[0], rel=1e-5)


def test_what_two_children_give_their_parent_is_added_by_the_kernel(device):
    torch.manual_seed(0)
    stem = [nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)]
    pc = compiled(nn.Sequential(*stem, Residual(4, 5, 2), *head), device)
    assert agree(pc, pccompile.Strict(3, 0.1), *images(device, 2, 4))["conv_step"] == 3 * 2
    calls = [line for line in pc.code.splitlines() if "step_images(" in line]
    siblings = [line.split("step_images(")[1].split(", ")[4] for line in calls]
    assert sum(argument != "None" for argument in siblings) == 1


def test_every_node_a_vertex(device):
    model = small().to(device)
    pc = pccompile.compile(model, loss_fn=F.cross_entropy, dynamic=False, verify=False, vertices="nodes")
    launches = agree(pc, RULE, *images(device, 2, 5), tolerance=1e-4)
    assert launches["conv_step"] == 2 * 2


def test_training_is_the_same_when_launches_are_recorded(device, monkeypatch):
    recorder = EmulatedRecorder()
    if device == "cpu":
        monkeypatch.setattr(aten, "recorder_of", lambda devices: recorder)
    (x, y), weights = images(device, 1, 3, 1), []
    layers = (
        nn.Conv2d(1, 2, 1),
        nn.Tanh(),
        nn.Conv2d(2, 2, 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2, 3),
    )
    start = nn.Sequential(*layers)
    for backend in ("triton", "eager"):
        model = copy.deepcopy(start).to(device)
        pc = pccompile.compile(model, RULE, F.cross_entropy, backend=backend, dynamic=False, verify=False)
        pc.cuda_graph = backend == "triton"
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for scale in (1.0, 0.5, 2.0, 1.5):  # launches are recorded at the third
            optimizer.zero_grad()
            pc.loss(scale * x, y).backward()
            optimizer.step()
        weights.append([parameter.detach() for parameter in model.parameters()])
    assert device != "cpu" or recorder.replays >= 2
    for recorded, plain in zip(*weights, strict=True):
        torch.testing.assert_close(recorded, plain, rtol=1e-4, atol=1e-6)


def test_images_that_are_channels_last(device):
    model = strided().to(memory_format=torch.channels_last)
    x, y = images(device, 2, 5)
    launches = agree(compiled(model, device), RULE, x.to(memory_format=torch.channels_last), y, tolerance=3e-5)
    assert launches["conv_step"] == 3 * 2


def test_float32_is_as_near_to_float64_as_rounding_lets_it_be(device):
    model, (x, y) = small(), images(device, 2, 5)
    exact = compiled(copy.deepcopy(model).double(), device)
    exact.rule, exact.backend = RULE, "eager"
    pc = compiled(model, device)
    pc.rule, pc.backend = RULE, "triton"
    (theirs, _), (ours, launches) = step(exact, x.double(), y), step(pc, x, y)
    assert launches["conv_step"]
    largest = max(map(norm, theirs[1:]))
    for mine, other in zip(ours, theirs, strict=True):
        assert norm(mine - other) <= 1e-5 * max(norm(other), 0.1 * largest)


def test_float64_runs_as_operators_and_the_report_says_why(device):
    pc, (x, y) = compiled(small().double(), device), images(device, 2, 5)
    assert not agree(pc, RULE, x.double(), y, tolerance=1e-12)
    assert {row.reason for row in every_step(pc) if row.operations} == {"float64 has no kernel"}


def test_under_autocast_values_are_halves_and_gradients_no_worse_than_those_of_operators(device):
    pc, exact, (x, y) = compiled(small(), device), compiled(small().double(), device), images(device, 2, 5)
    pc.rule = exact.rule = RULE
    exact.backend = "eager"
    truth, _ = step(exact, x.double(), y)
    strays = {}
    with torch.autocast(device, dtype=torch.float16):
        for pc.backend in ("eager", "triton"):
            found, launches = step(pc, x, y)
            strays[pc.backend] = [norm(mine - theirs) for mine, theirs in zip(found, truth, strict=True)]
    assert launches["conv_step"] == 2 * 2
    largest = max(map(norm, truth[1:]))
    for mine, theirs in zip(strays["triton"], strays["eager"], strict=True):
        assert mine <= 2 * theirs + 1e-3 * largest
