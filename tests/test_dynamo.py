"""`torch.compile(model, backend="pccompile")`: pieces of graph as programs, errors across graph breaks."""

import copy
from functools import partial
from importlib.metadata import entry_points

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pccompile
import pccompile.module
from pccompile.backends import AtenBackend
from pccompile.dynamo import backend
from pccompile.errors import CaptureError, UsageError

NAME, GROUP = "pccompile", "torch_dynamo_backends"


@pytest.fixture(autouse=True)
def registered():
    """Installed, the entry point registers the back end; straight from the source tree, this does."""
    torch._dynamo.reset()
    if NAME not in torch._dynamo.list_backends():
        torch._dynamo.register_backend(backend, name=NAME)
    yield
    torch._dynamo.reset()


def test_torch_finds_the_back_end_through_the_packages_entry_point():
    found = [point for point in entry_points(group=GROUP) if point.name == NAME]
    if not found:
        pytest.skip("pccompile is on the path without being installed")
    assert all(point.load() is backend for point in found)
    assert NAME in torch._dynamo.list_backends()


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 5))

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Broken(nn.Module):
    """Dynamo cannot follow the print, nor the branch on values."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        print("a graph break")
        x = x + torch.tanh(self.second(x))
        if x.sum() > -1e9:
            x = x * 2
        return self.third(x) * x.shape[0]


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))


MODELS = {
    "mlp": (mlp, lambda batch: torch.randn(batch, 4), 1),
    "convolutions with batch norm and dropout": (Convolutional, lambda batch: torch.randn(batch, 3, 8, 8), 1),
    "graph breaks": (Broken, lambda batch: torch.randn(batch, 4), 3),
}


def pair(model, **options):
    """The compiled model, a twin to compare it with, and the list of its pieces."""
    pieces = []
    compiled = torch.compile(model, backend=NAME, options={**options, "pieces": pieces})
    return compiled, copy.deepcopy(model), pieces


def loss_of(function, x, y):
    return F.cross_entropy(function(x), y)


def backward(function, seed=1):
    torch.manual_seed(seed)
    loss = function()
    loss.backward()
    return loss


def assert_equal_state(model, twin):
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_buffers_equal_eagers_bit_for_bit_at_every_batch_size(name):
    build, inputs, number_of_pieces = MODELS[name]
    model = build()
    compiled, twin, pieces = pair(model)
    for batch in (6, 6, 3, 4):
        x, y = inputs(batch), torch.randint(5, (batch,))
        ours, theirs = (backward(partial(loss_of, function, x, y)) for function in (compiled, twin))
        assert torch.equal(ours, theirs)
        assert_equal_state(model, twin)
    assert len(pieces) >= number_of_pieces
    assert all(piece.program.rule == "ZIL" for piece in pieces)


def test_vertices_keep_the_names_and_source_lines_of_the_users_modules():
    model = Convolutional()
    compiled, _, pieces = pair(model)
    compiled(torch.randn(6, 3, 8, 8))
    program = pieces[0].program
    assert {"conv", "norm", "head.1", "conv.weight", "norm.running_mean", "head.1.bias"} <= set(program.graph)
    assert "self.norm(self.conv(x))" in program.vertex("conv").source


def test_the_loss_may_be_inside_the_compiled_function():
    model = mlp()
    twin, pieces = copy.deepcopy(model), []

    @torch.compile(backend=NAME, options={"pieces": pieces})
    def loss(x, y):
        return F.cross_entropy(model(x), y)

    x, y = torch.randn(6, 4), torch.randint(5, (6,))
    assert torch.equal(backward(lambda: loss(x, y)), backward(lambda: F.cross_entropy(twin(x), y)))
    assert_equal_state(model, twin)
    assert any(vertex.operator.startswith("cross_entropy") for vertex in pieces[0].program.vertices)


def test_two_instances_of_one_class_share_a_piece_and_keep_their_own_parameters():
    model = nn.ModuleList([mlp(), mlp()])
    twin, pieces = copy.deepcopy(model), []

    @torch.compile(backend=NAME, options={"pieces": pieces})
    def run(layer, x):
        return layer(x)

    x = torch.randn(6, 4)
    # both forward passes before the first backward pass
    backward(lambda: sum(run(layer, x).square().sum() for layer in model))
    backward(lambda: sum(layer(x).square().sum() for layer in twin))
    assert_equal_state(model, twin)
    assert len(pieces) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "fixed_prediction", "steps": 4, "step_size": 0.5, "vertices": "nodes"},
        {"rule": pccompile.FixedPrediction(4, 0.5), "vertices": "nodes"},
    ],
    ids=["by name", "as an object"],
)
def test_a_rule_and_its_arguments_pass_through(options):
    model = mlp()
    compiled, twin, pieces = pair(model, **options)
    x, y = torch.randn(6, 4), torch.randint(5, (6,))
    backward(lambda: F.cross_entropy(compiled(x), y))
    assert pieces[0].rule == pccompile.FixedPrediction(4, 0.5)
    expected = pccompile.compile(twin, pccompile.FixedPrediction(4, 0.5), vertices="nodes")
    backward(lambda: F.cross_entropy(expected(x), y))
    assert_equal_state(model, twin)
    exact = torch.autograd.grad(F.cross_entropy(twin(x), y), twin[0].weight)[0]
    assert not torch.allclose(model[0].weight.grad, exact, rtol=1e-2)


def test_the_back_end_of_the_pieces_is_chosen_by_an_option():
    model = mlp()
    compiled, twin, pieces = pair(model, backend="aten")
    x, y = torch.randn(6, 4), torch.randint(5, (6,))
    backward(partial(loss_of, compiled, x, y))
    backward(partial(loss_of, twin, x, y))
    assert_equal_state(model, twin)
    assert isinstance(pieces[0]._latest.backend, AtenBackend)


@pytest.mark.parametrize("verify", [True, False])
def test_pieces_are_compared_with_eager_unless_an_option_says_no(verify, monkeypatch):
    compared = []
    monkeypatch.setattr(pccompile.module, "verify", lambda *arguments: compared.append(arguments))
    compiled, _, pieces = pair(mlp(), verify=verify)
    compiled(torch.randn(6, 4))
    assert len(pieces) == 1
    assert len(compared) == int(verify)


def test_without_gradients_nothing_is_compiled():
    compiled, twin, pieces = pair(Convolutional().eval())
    x = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(compiled(x), twin(x))
    assert all(piece._latest is None for piece in pieces)


class Regions(nn.Module):
    """Regions of the forward under no_grad, under autocast and under activation checkpointing."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x):
        x = self.a(x)
        with torch.no_grad():
            scale = self.b(x).mean() + x.mean()
        x = checkpoint(lambda value: torch.tanh(self.b(value)), x * scale, use_reentrant=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.c(x)
        return x.float()


def test_regions_without_gradients_with_autocast_and_with_checkpoints_mean_what_they_mean_in_eager_mode():
    model = Regions()
    compiled, twin, pieces = pair(model)
    x = torch.randn(6, 4)
    backward(lambda: compiled(x).square().sum())
    backward(lambda: twin(x).square().sum())
    assert_equal_state(model, twin)
    assert len(pieces) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "strict"}, "pccompile.compile"),
        ({"rule": pccompile.Incremental()}, "pccompile.compile"),
        ({"rule": "backpropagation"}, "choose one of 'zil'"),
        ({"rule": 3}, "is no rule"),
        ({"steps": 3}, "unknown options: 'steps'"),
        ({"rule": "fixed_prediction", "steps": 0}, "at least one inference step"),
    ],
    ids=str,
)
def test_an_option_that_cannot_work_is_refused_by_name(options, message):
    compiled = torch.compile(mlp(), backend=NAME, options=options)
    with pytest.raises(UsageError, match=message):
        compiled(torch.randn(6, 4))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 7


def test_a_custom_autograd_function_is_refused():
    layer = nn.Linear(4, 4)
    compiled = torch.compile(lambda x: Doubled.apply(layer(x)), backend=NAME)
    with pytest.raises(CaptureError, match="custom autograd function"):
        compiled(torch.randn(6, 4))
