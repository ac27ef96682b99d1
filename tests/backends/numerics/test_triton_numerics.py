"""On the Triton back end models train as on the eager one, to the precision of float32."""

import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile
from pccompile.backends import inductor, triton
from pccompile.kernels import counting_launches

RULES = [
    pccompile.ZIL(),
    pccompile.FixedPrediction(steps=6, step_size=0.3),
    pccompile.Strict(steps=3, step_size=0.1),
]
LOSS = {"cross_entropy_predict": 1, "cross_entropy_error": 1}
ACTIVATIONS = [
    nn.ReLU(),
    nn.LeakyReLU(0.2),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.Softplus(),
]


def batch(device, *leading, features=6, classes=3):
    generator = torch.Generator().manual_seed(1)
    shape = leading or (5,)
    x = torch.randn(*shape, features, generator=generator)
    return x.to(device), torch.randint(0, classes, shape[:1], generator=generator).to(device)


def compiled(model, device, loss_fn=F.cross_entropy):
    """A model compiled once: rules and back ends share its capture."""
    return pccompile.compile(model.to(device), loss_fn=loss_fn, dynamic=False, verify=False)


def step(pc, x, y):
    """One step from the model as it is: loss, gradients (or weights, if they move), buffers; and what it launched."""
    before = {name: tensor.clone() for name, tensor in pc.model.state_dict().items()}
    pc.prepare(x, y)
    torch.manual_seed(3)
    with counting_launches() as launches:
        if pc.rule.name == "Incremental":
            loss = pc.step(x, y, torch.optim.SGD(pc.model.parameters(), lr=0.05))
            found = [p.detach().clone() for p in pc.model.parameters()]
        else:
            loss = pc.loss(x, y)
            found = list(torch.autograd.grad(loss, [p for p in pc.model.parameters() if p.requires_grad]))
    result = [loss.detach(), *found, *(buffer.clone() for buffer in pc.model.buffers())]
    pc.model.load_state_dict(before)
    return result, launches


def norm(tensor):
    return float(tensor.double().norm())


def agree(pc, rule, x, y, tolerance=1e-5):
    """Compare both back ends; returns the kernels launched."""
    pc.rule = rule
    pc.backend = "eager"
    eager, nothing = step(pc, x, y)
    pc.backend = "triton"
    ours, launches = step(pc, x, y)
    assert not nothing
    assert pc._latest.backend.eager is None  # this back end itself ran
    floor = 0.1 * max(map(norm, eager[1:]))  # a bias before a normalisation has rounding for a gradient
    for mine, theirs in zip(ours, eager, strict=True):
        assert norm(mine - theirs) <= tolerance * max(norm(theirs), floor)
    return launches


def mlp(*widths):
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def test_layers_and_their_activations_are_one_launch_forward_and_one_back(device):
    layers = [layer for activation in ACTIVATIONS for layer in (nn.Linear(6, 6), activation)]
    pc = compiled(nn.Sequential(*layers, nn.Linear(6, 3)), device)
    launches = agree(pc, pccompile.ZIL(), *batch(device))
    assert launches == {"linear_predict": len(ACTIVATIONS) + 1, "linear_error": len(ACTIVATIONS) + 1, **LOSS}
    assert not [row for row in pc.backend_report() if row.kernel == "aten"]


def test_fixed_prediction_takes_two_launches_a_layer_whatever_the_number_of_steps(device):
    pc = compiled(mlp(6, 7, 5, 6, 3), device)
    for steps in (4, 20):
        launches = agree(pc, pccompile.FixedPrediction(steps=steps, step_size=0.4), *batch(device))
        assert launches == {"linear_predict": 4, "linear_error": 4, **LOSS}
        assert not [row for row in pc.backend_report() if row.kernel == "aten"]


@pytest.mark.parametrize("activation", [*ACTIVATIONS, nn.Identity()], ids=str)
def test_a_hidden_layer_that_is_no_part_of_a_chain_takes_a_launch_in_every_step(device, activation):
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(9, 3), nn.ELU())  # which no kernel takes
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 33), activation, nn.Linear(33, 9, bias=False), head)
    launches = agree(compiled(model, device), pccompile.Strict(steps=4, step_size=0.3), *batch(device), tolerance=3e-5)
    assert not launches["strict_sweep"] and launches["linear_step"] == 2 * 3  # two layers, in all steps but the first


class Skips(nn.Module):
    """A skip around a layer, and two layers that read the same parent."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8, bias=False)
        self.q, self.k, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = F.gelu(self.a(x))
        h = h + torch.relu(self.b(h))
        return self.c(self.q(h) * torch.sigmoid(self.k(h)))


class TiedLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.relu(self.b(torch.tanh(self.a(x)))))))


class Regularised(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.3)

    def forward(self, x):
        return self.c(self.drop(F.silu(self.b(torch.tanh(self.norm(self.a(x)))))))


class Transposed(nn.Module):
    """A weight that is (in, out), as GPT-2 has them."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8))
        self.c = nn.Linear(8, 3)

    def forward(self, x):
        return self.c(F.gelu(torch.addmm(self.bias, x, self.weight), approximate="tanh"))


class Cells(nn.Module):
    """Two weights of different sizes read the same error, in every time step."""

    def __init__(self):
        super().__init__()
        self.cell, self.c = nn.LSTMCell(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], 4)
        for part in (x[:, :3], x[:, 3:]):
            h, c = self.cell(part, (h, c))
        return self.c(h)


class Mean(nn.Module):
    """Over the positions of a sequence."""

    def __init__(self, body, features=8):
        super().__init__()
        self.body, self.head = body, nn.Linear(features, 3)

    def forward(self, x):
        found = self.body(x)
        return self.head((found[0] if isinstance(found, tuple) else found).mean(1))


MODELS = {"skips": Skips, "tied": TiedLayers, "regularised": Regularised, "transposed": Transposed}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_it_agrees_with_the_eager_back_end(device, make):
    pc = compiled(make(), device)
    for rule in RULES:
        launches = agree(pc, rule, *batch(device))
        assert launches["linear_predict"] and (launches["linear_error"] or launches["strict_sweep"])


def test_inputs_with_positions_are_rows(device):
    pc = compiled(Mean(nn.Sequential(nn.Linear(6, 8, bias=False), nn.GELU(), nn.Linear(8, 8), nn.ReLU())), device)
    for rule in RULES:
        agree(pc, rule, *batch(device, 5, 4))
    launches = agree(pc, pccompile.ZIL(), *batch(device, 5, 4))
    assert launches == {"linear_predict": 3, "linear_error": 3, **LOSS}
    operators = {vertex for row in pc.backend_report() if row.kernel == "aten" for vertex in row.vertices}
    assert not any(vertex.startswith("body") for vertex in operators)


@pytest.mark.parametrize("make, launched, argument", [(Skips, 5, 4), (TiedLayers, 4, 5)], ids=["children", "uses"])
def test_what_other_children_gave_a_parent_and_other_uses_a_weight_is_added_by_the_kernel(
    device, make, launched, argument
):
    pc = compiled(make(), device)
    assert agree(pc, pccompile.ZIL(), *batch(device))["linear_error"] == launched
    calls = [found.split(", ") for found in re.findall(r"sweep_rows\((.*?)\)", pc.code)]
    assert sum(call[argument] not in ("True", "False") for call in calls) == 1


def test_a_sum_of_losses_evaluation_and_frozen_weights(device):
    model = Regularised().eval()
    model.a.requires_grad_(False)
    model.b.weight.requires_grad_(False)
    pc = compiled(model, device, lambda outputs, target: F.cross_entropy(outputs, target, reduction="sum"))
    for rule in RULES:
        agree(pc, rule, *batch(device))


def test_incremental_learning(device):
    pc = compiled(mlp(6, 7, 5, 3), device)
    assert agree(pc, pccompile.Incremental(steps=2, step_size=0.1), *batch(device))["linear_error"]


def test_the_products_of_a_recurrent_network(device):
    pc = compiled(Mean(nn.LSTM(6, 8, batch_first=True)), device)
    launches = agree(pc, pccompile.FixedPrediction(steps=3, step_size=0.5), *batch(device, 3, 2))
    assert launches["linear_predict"] and launches["linear_error"]


def test_weights_that_share_an_error_are_swept_apart(device):
    launches = agree(compiled(Cells(), device), pccompile.ZIL(), *batch(device))
    assert launches["linear_error"] == 5  # two products with a weight in each of two time steps, and the last layer


def test_the_linear_layers_of_a_transformer_beside_its_attention(device):
    pc = compiled(Mean(nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, batch_first=True), 6), device)
    launches = agree(pc, pccompile.ZIL(), *batch(device, 3, 4))
    assert launches["linear_error"] == 5  # queries, keys and values together; the projection; two layers; the head
    assert {"linear_predict", "linear_error", "aten"} <= {row.kernel for row in pc.backend_report()}


def test_an_error_for_some_outputs_only_and_a_second_backward_pass(device):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, x):
            h = F.leaky_relu(self.body(x))
            return self.a(h), self.b(h)

    model, (x, _) = Two().to(device), batch(device)
    pc = pccompile.compile(model, backend="triton", dynamic=False)
    reads = [
        lambda out: out[0].sum(),
        lambda out: out[1].pow(2).sum(),
        lambda out: out[0].pow(2).sum() + out[1].pow(2).sum(),
    ]
    for read in reads:
        loss = read(pc(x))
        theirs = torch.autograd.grad(read(model(x)), list(model.parameters()), allow_unused=True)
        for again in (True, False):
            ours = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=again)
            for mine, other in zip(ours, theirs, strict=True):
                assert (mine is None) == (other is None)
                assert other is None or float((mine - other).norm()) <= 1e-5 * float(other.norm())


def test_float64_runs_as_operators_and_the_report_says_why(device):
    x, y = batch(device)
    pc = compiled(mlp(6, 7, 3).double(), device)
    assert not agree(pc, pccompile.ZIL(), x.double(), y, tolerance=1e-12)
    assert {row.reason for row in pc.backend_report() if row.operations} == {"float64 has no kernel"}


def test_under_autocast_products_are_bfloat16_and_so_are_the_kernels(device):
    pc = compiled(mlp(6, 7, 3), device)
    with torch.autocast(device, dtype=torch.bfloat16):
        launches = agree(pc, pccompile.ZIL(), *batch(device), tolerance=2e-2)
    assert launches == {"linear_predict": 2, "linear_error": 2, **LOSS}


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_under_autocast_the_loss_reads_logits_in_half_precision(device, reduction):
    weight = torch.tensor([0.5, 1.0, 2.0], device=device)

    def loss(outputs, target):
        return F.cross_entropy(outputs, target, weight, reduction=reduction, ignore_index=1).sum()

    pc = compiled(mlp(6, 7, 3), device, loss)
    with torch.autocast(device, dtype=torch.bfloat16):
        launches = agree(pc, pccompile.ZIL(), *batch(device), tolerance=2e-2)
    assert launches == {"linear_predict": 2, "linear_error": 2, **LOSS}
    graphs = [stage.piece.graph for stage in pc._latest.backend.latest.stages]
    values = [node.meta.get("val") for graph in graphs for node in graph.nodes if node.op == "call_function"]
    kinds = {(v.dtype, tuple(v.shape)) for v in values if isinstance(v, torch.Tensor)}
    assert (torch.bfloat16, (5, 3)) in kinds and (torch.float32, (5, 3)) not in kinds


def test_what_the_loop_of_strict_inference_does_not_change_is_predicted_before_it(device):
    pc = compiled(mlp(6, 7, 5, 3), device, lambda output, target: F.cross_entropy(output, target, label_smoothing=0.1))
    agree(pc, pccompile.Strict(steps=4, step_size=0.1), *batch(device))  # such a loss keeps it a loop
    rows = [row for row in pc.backend_report() if row.phase == "every step"]
    in_loop = [row.vertices for row in rows if row.kernel.startswith("linear")]
    # The first layer's prediction stays what it was; the last one has no value of its own.
    assert sorted(in_loop) == [("2",), ("4",), ("4",)]
    assert "torch.t(" not in pc.code[pc.code.index("def error_sweep_2") : pc.code.index("def error_sweep_3")]


@pytest.mark.usefixtures("every_time_a_microsecond")
def test_kernels_and_operators_are_measured_on_tensors_of_the_vertexs_kinds(device):
    pc = compiled(nn.Sequential(Skips(), nn.Linear(3, 3)), device)
    agree(pc, pccompile.FixedPrediction(steps=20, step_size=0.4, levelled=True), *batch(device))
    rows = [row for row in pc.backend_report() if row.operations]
    assert {row.kernel for row in rows} == {"linear_predict", "linear_error"}
    assert {row.reason for row in rows} == {"kernel 1 us, operators 1 us"}


@pytest.mark.usefixtures("every_time_a_microsecond")
def test_a_step_of_a_convolution_is_measured_with_the_move_of_its_parent(device, monkeypatch):
    monkeypatch.setattr("pccompile.backends.network.too_large", lambda *network: "a test of layers")
    layers = nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Conv2d(2, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    pc = compiled(nn.Sequential(*layers, nn.Linear(2, 3)), device)
    x, y = torch.linspace(-1, 1, 18, device=device).view(2, 1, 3, 3), torch.tensor([0, 2], device=device)
    agree(pc, pccompile.Strict(steps=3, step_size=0.1), x, y)
    (row,) = [row for row in pc.backend_report() if row.kernel == "conv_step"]
    assert row.vertices == ("2", "0") and row.reason == "kernel 1 us, operators 1 us"


@pytest.mark.skipif(not inductor.is_available("cpu"), reason="Inductor needs a C++ compiler")
def test_inductor_compiles_what_lies_between_the_kernels(device, monkeypatch):
    monkeypatch.setattr(triton, "_rest", lambda kinds: inductor.with_inductor)
    pc = compiled(nn.Sequential(nn.Linear(6, 7), nn.Softmax(-1), nn.Linear(7, 3)), device)
    launches = agree(pc, pccompile.FixedPrediction(steps=4, step_size=0.4), *batch(device))
    assert launches == {"linear_predict": 2, "linear_error": 2, **LOSS}
    assert {"linear_predict", "linear_error", "cross_entropy", "inductor"} == {
        row.kernel for row in pc.backend_report()
    }
