"""Which programs are chains, whose strict inference may be one launch, and what is told of those that are not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile
from pccompile.backends import kernels
from pccompile.backends.chain import NoChain, chain_of
from pccompile.backends.sweep import ChainSweep
from pccompile.kernels.activations import ACTIVATIONS
from pccompile.kernels.strict_sweep import launch

X, Y = torch.linspace(-1, 1, 30).view(5, 6), torch.tensor([0, 1, 2, 1, 0])
TARGET = torch.linspace(1, -1, 15).view(5, 3)
IMAGES, TWO_CHANNELS = {"x": torch.linspace(-1, 1, 45).view(5, 1, 3, 3)}, {"x": X.view(5, 2, 1, 3).expand(5, 2, 2, 3)}


def layers(*between, features=6):
    return nn.Sequential(nn.Linear(features, 8), *between, nn.Linear(8, 3))


def images(*layers, features):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 3))


def found(model, loss_fn=F.cross_entropy, target=Y, x=X, rule=None):
    """The chain that a model's program is."""
    rule = rule or pccompile.Strict(3, 0.1)
    pc = pccompile.compile(model, rule, loss_fn=loss_fn, backend="eager", verify=False)
    pc.prepare(x, target)
    compiled = pc._latest
    return chain_of(compiled.program, pccompile.derivatives.local_functions(compiled.program, compiled.captured))


def test_a_stack_of_linear_layers_is_a_chain():
    chain = found(layers(nn.Tanh(), nn.Linear(8, 8, bias=False), nn.LeakyReLU(0.2)))
    told = [(layer.name, layer.weight, layer.bias, layer.activation.name) for layer in chain.layers]
    assert told == [
        ("0", "0.weight", "0.bias", "tanh"),
        ("2", "2.weight", None, "leaky_relu"),
        ("4", "4.weight", "4.bias", "identity"),
    ]
    assert chain.negative_slope == 0.2 and not chain.free_output
    loss = chain.loss
    assert (loss.kind, loss.target, loss.mean, loss.factor, loss.ignore_index) == (
        "cross_entropy", "target", True, 1.0, -100,
    )  # fmt: skip


def test_a_stack_with_convolutions_is_a_chain():
    chain = found(
        nn.Sequential(
            nn.Conv2d(2, 3, 2, stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False), nn.Tanh(), nn.AvgPool2d(2),
            nn.Conv2d(3, 4, 3, padding="same"), nn.MaxPool2d((2, 1), (3, 2)), nn.Flatten(),
            nn.Linear(8, 3),
        ),
        x=torch.linspace(-1, 1, 5 * 2 * 9 * 9).view(5, 2, 9, 9),
    )  # fmt: skip
    first, second, last = chain.layers
    assert (first.weight, first.bias, first.activation.name) == ("0.weight", None, "tanh")
    assert first.convolution.form == ((2, 1), (1, 0), (1, 2), 1)
    assert (first.convolution.pool.kind, first.convolution.pool.window) == ("average", (2, 2, 2, 2))
    assert second.activation.name == "identity" and second.convolution.form == ((1, 1), (1, 1), (1, 1), 1)
    assert (second.convolution.pool.kind, second.convolution.pool.window) == ("max", (2, 1, 3, 2))
    assert last.convolution is None and not chain.linear


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Softplus(), nn.LeakyReLU()],
    ids=str,
)
def test_every_activation_of_the_kernels_is_known(activation):
    assert found(layers(activation)).layers[0].activation.name in set(ACTIVATIONS) - {"identity"}


@pytest.mark.parametrize(
    "loss_fn, mean, factor",
    [
        (F.mse_loss, True, 1.0),
        (lambda output, target: 0.5 * F.mse_loss(output, target, reduction="sum"), False, 0.5),
        (lambda output, target: 3 * F.mse_loss(output, target) / 2, True, 1.5),
    ],
)
def test_a_squared_error_may_be_a_sum_and_have_a_factor(loss_fn, mean, factor):
    chain = found(layers(nn.ReLU()), loss_fn, TARGET)
    loss = chain.loss
    assert not chain.free_output
    assert (loss.kind, loss.mean, loss.factor) == ("squared_error", mean, factor)


def test_what_is_done_to_the_input_first_belongs_to_it():
    chain = found(nn.Sequential(nn.Flatten(), *layers(nn.ReLU())), x=X.view(5, 2, 3))
    assert len(chain.layers) == 2 and chain.input.before
    assert found(layers(nn.ReLU())).input.before == ()


def test_a_weight_may_be_used_by_several_layers():
    shared = nn.Linear(8, 8)
    chain = found(layers(nn.Tanh(), shared, nn.Tanh(), shared, nn.Tanh()))
    assert [layer.weight for layer in chain.layers] == ["0.weight", "2.weight", "2.weight", "6.weight"]


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.c(h + torch.relu(self.b(h)))


class Branch(Skip):
    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.c(self.b(h)) + self.c(h)


class Positions(Skip):
    def forward(self, x):
        return self.c(torch.tanh(self.a(x.view(5, 1, 6)))).squeeze(1)


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 1), nn.Linear(18, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(1, 5, 18).squeeze(0))


def smoothed(output, target):
    return F.cross_entropy(output, target, label_smoothing=0.1)


def weighted(output, target):
    return F.cross_entropy(output, target, torch.ones(3))


@pytest.mark.parametrize(
    "reason, model, options",
    [
        ("layer 0 is a convolution", images(nn.ConvTranspose2d(1, 2, 2), nn.ReLU(), features=32), IMAGES),
        ("layer 0 has 2 groups", images(nn.Conv2d(2, 2, 2, groups=2), nn.ReLU(), features=4), TWO_CHANNELS),
        ("layer 0 is padded more at one edge",
         images(nn.Conv2d(1, 2, 2, padding="same"), nn.ReLU(), features=18), IMAGES),
        ("windows of layer 0 overlap", images(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2, 1), features=8), IMAGES),
        ("windows of layer 0 overlap or are padded",
         images(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AvgPool2d(2, padding=1), features=8), IMAGES),
        ("no kernel pools as layer 0 does",
         images(nn.Conv2d(1, 2, 1), nn.MaxPool2d((1, 2), dilation=2), features=6), IMAGES),
        ("layer 0 ends with relu", images(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2), nn.ReLU(), features=2), IMAGES),
        ("layer 0 ends with adaptive_avg_pool2d",
         images(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), features=2), IMAGES),
        ("the output 2 pools", nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1), nn.MaxPool2d((3, 2)),
         nn.Flatten()), IMAGES),
        ("layer a ends with squeeze", Rows(), IMAGES),
        ("layer 0 draws random numbers", layers(nn.ReLU(), nn.Dropout()), {}),
        ("layer 0 ends with elu", layers(nn.ELU()), {}),
        ("layer 0 ends with tanh", layers(nn.ReLU(), nn.Tanh()), {}),
        ("layer 1 is _native_batch_norm_legit_functional", layers(nn.BatchNorm1d(8)), {}),
        ("layer b ends with add", Skip(), {}),
        ("layer c ends with linear", Branch(), {}),
        ("the value of layer a is no matrix of a batch|ends with squeeze", Positions(), {}),
        ("a parameter of layer 2 is computed",
         layers(nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))), {}),
        ("leaky_relu has several slopes", layers(nn.LeakyReLU(0.1), nn.Linear(8, 8), nn.LeakyReLU(0.2)), {}),
        ("no layer has a free value", nn.Linear(6, 3), {}),
        ("the gradient of input is wanted", layers(nn.Tanh()), {"x": X.clone().requires_grad_()}),
        ("the loss is smooth_l1_loss", layers(nn.Tanh()), {"loss_fn": F.smooth_l1_loss, "target": TARGET}),
        ("the loss is sub, pow, sum", layers(nn.Tanh()),
         {"loss_fn": lambda output, target: ((output - target) ** 2).sum(), "target": TARGET}),
        ("the loss smooths its labels", layers(nn.Tanh()), {"loss_fn": smoothed}),
        ("the loss has weights of classes", layers(nn.Tanh()), {"loss_fn": weighted}),
        ("the loss's targets are no classes", layers(nn.Tanh()), {"target": TARGET.softmax(1)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_no_chain_says_why(reason, model, options):
    with pytest.raises(NoChain, match=reason):
        found(model, **options)


# The back end ---------------------------------------------------------------------------------------------------------


SMALL = {"model": images(nn.Conv2d(1, 2, 2), nn.Tanh(), features=8), **IMAGES}


def trained(model, rule=None, loss_fn=F.cross_entropy, x=X, target=Y):
    pc = pccompile.compile(model, rule or pccompile.Strict(3, 0.1), loss_fn=loss_fn, backend="triton", verify=False)
    pc.loss(x, target).backward()
    return pc


def test_the_report_says_why_inference_is_not_one_launch(monkeypatch):
    monkeypatch.setattr("pccompile.backends.sweep.objection_to", lambda *kinds: "no GPU")
    report = trained(layers(nn.Tanh())).backend_report()
    assert report.notes == ("not all steps in one launch: no GPU",)
    assert str(report).splitlines()[-1] == report.notes[0]
    assert "every step" in {row.phase for row in report}


@pytest.mark.parametrize(
    "reason, rule, changes",
    [
        ("the values' optimizer is adam", pccompile.Strict(3, 0.1, optimizer="adam"), {}),
        ("inference may stop early", pccompile.Strict(3, 0.1, tolerance=1e-9), {}),
        ("the target is [3] where the output is [5, 3]", None, {"loss_fn": F.mse_loss, "target": TARGET[0]}),
        ("layer 0 ends with elu", None, {"model": layers(nn.ELU())}),
        ("the values' optimizer is adam", pccompile.Strict(3, 0.1, optimizer="adam"), SMALL),
        ("inference may stop early", pccompile.Strict(3, 0.1, tolerance=1e-9), SMALL),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_runs_that_no_kernel_takes_are_told_apart(reason, rule, changes):
    pc = trained(**{"model": layers(nn.Tanh()), "rule": rule} | changes)
    assert pc.backend_report().notes == (f"not all steps in one launch: {reason}",)


@pytest.mark.parametrize(
    "reason, model",
    [
        ("there are 9 layers, more than 8", images(*(nn.Conv2d(1, 1, 1) for _ in range(8)), features=9)),
        (
            "a sample's values, errors and drives are 282 KiB, more than 256",
            images(nn.Conv2d(1, 2666, 1), features=23994),
        ),
    ],
)
def test_networks_that_are_too_large_run_layer_by_layer(monkeypatch, reason, model):
    monkeypatch.setattr("pccompile.backends.sweep.objection_to", lambda *kinds: "")
    assert trained(model, **IMAGES).backend_report().notes == (f"not all steps in one launch: {reason}",)


def test_other_rules_have_nothing_to_note():
    assert trained(layers(nn.Tanh()), pccompile.FixedPrediction(3, 0.1)).backend_report().notes == ()


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """The kernel is allowed and does nothing, and takes as long as the test says."""
    monkeypatch.setenv("PCCOMPILE_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("PCCOMPILE_KERNELS", raising=False)
    monkeypatch.setattr("pccompile.backends.sweep.objection_to", lambda *kinds: "")
    monkeypatch.setattr(kernels, "on_gpu", lambda values: True)
    ran, seconds = [], {"operators": 3.0, "batch_tiles": 2.0, "cooperative": 1.0, "half_steps": 4.0}

    def run(sweep, run, values, form):
        ran.append(form)
        return {name: (torch.zeros_like(values[name][0]),) for name in sweep.leaves}

    def measure(calls, on_cuda):
        for call in calls.values():
            call()
        return {name: [seconds[name]] for name in calls}

    monkeypatch.setattr(ChainSweep, "run", run)
    monkeypatch.setattr(ChainSweep, "forms", lambda sweep: list(launch.FORMS))
    monkeypatch.setattr(kernels, "measure", measure)
    return seconds, ran


@pytest.mark.parametrize("fastest", ["batch_tiles", "cooperative", "half_steps"])
def test_the_fastest_form_runs_and_the_choice_outlives_the_process(timed, fastest):
    seconds, ran = timed
    seconds[fastest] = 0.5
    pc = trained(layers(nn.Tanh()))
    assert ran[-1] == fastest and set(ran) == set(launch.FORMS)
    (row,) = [row for row in pc.backend_report() if row.kernel == "strict_sweep"]
    assert f"{fastest} 5e+05 us" in row.reason and "operators 3e+06 us" in row.reason
    assert row.launches == (1 if fastest != "half_steps" else 2 + 3 * 3 + 2)
    ran.clear()
    trained(layers(nn.Tanh()))
    assert ran == [fastest]


def test_flat_graphs_that_are_faster_stay(timed):
    seconds, _ = timed
    seconds["operators"] = 0.5
    pc = trained(model := layers(nn.Tanh()))
    assert "operators 5e+05 us" in pc.backend_report().notes[0]
    eager = pccompile.compile(model, pccompile.Strict(3, 0.1), loss_fn=F.cross_entropy, backend="eager")
    expected = torch.autograd.grad(eager.loss(X, Y), list(model.parameters()))
    assert all(
        torch.allclose(p.grad, e, rtol=1e-4, atol=1e-8) for p, e in zip(model.parameters(), expected, strict=True)
    )


def test_measuring_leaves_the_energies_of_the_step_alone(timed):
    seconds, _ = timed
    seconds["operators"] = 0.5
    pc = pccompile.compile(layers(nn.Tanh()), pccompile.Strict(3, 0.1), loss_fn=F.cross_entropy, backend="triton")
    pc.record_energies = True
    pc.loss(X, Y).backward()
    assert len(pc.energies) == 4


def test_a_form_that_fails_is_left_out_with_a_warning(timed, monkeypatch, caplog):
    _, ran = timed
    fine = ChainSweep.run

    def run(sweep, run, values, form):
        if form == "cooperative":
            raise RuntimeError("too large to be resident")
        return fine(sweep, run, values, form)

    monkeypatch.setattr(ChainSweep, "run", run)
    trained(layers(nn.Tanh()))
    assert ran[-1] == "batch_tiles" and "too large to be resident" in caplog.text
