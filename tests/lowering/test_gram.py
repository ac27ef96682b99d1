"""A value whose own prediction stays the same leaves the loop: its reader's errors, summed, tell where it is."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile
from pccompile.backends import inductor
from pccompile.lowering import gram

STRICT = pccompile.Strict(steps=6, step_size=0.2)


def deep(activation=nn.Tanh, bias=True):
    layers = (nn.Linear(12, 16, bias), activation(), nn.Linear(16, 10, bias), activation(), nn.Linear(10, 4, bias))
    return nn.Sequential(*layers)


def shallow():
    return nn.Sequential(nn.Linear(12, 16), nn.Sigmoid(), nn.Linear(16, 4))


def widening():
    return nn.Sequential(nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 16))


def wide():
    return nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))


class Skip(nn.Module):
    """Its first value has two readers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 10), nn.Linear(10, 10), nn.Linear(10, 4)

    def forward(self, x):
        first = torch.tanh(self.first(x))
        return self.last(first + torch.tanh(self.second(first)))


MODELS = {
    "two hidden layers": deep,
    "one hidden layer": shallow,
    "no biases": lambda: deep(bias=False),
    "ReLU": lambda: deep(nn.ReLU),
}


@pytest.fixture
def in_double(monkeypatch):
    monkeypatch.setattr(gram, "DTYPES", (torch.float64,))


def trained(build, rule=STRICT, rows=8, dtype=torch.float64, loss_fn=F.cross_entropy, **options):
    """The module after a step, and its gradients."""
    torch.manual_seed(0)
    model, x, y = build().to(dtype), torch.randn(rows, 12, dtype=dtype), torch.arange(rows) % 4
    if loss_fn is F.mse_loss:
        y = torch.randn(rows, 4, dtype=dtype)
    pc = pccompile.compile(model, rule, loss_fn=loss_fn, dynamic=False, **options)
    if rule.name == "Incremental":
        pc.step(x, y, torch.optim.SGD(model.parameters(), lr=0.1))
        return pc, [p.detach() for p in model.parameters()]
    pc.loss(x, y).backward()
    return pc, [p.grad for p in model.parameters()]


def sums(pc):
    """What is carried in the place of values, by the code that runs."""
    carried = {key for stage in stages(pc) if stage.piece.loop for key in stage.piece.outputs}
    return {key.removesuffix("_value_errors") for key in carried if key.endswith("_value_errors")}


def stages(pc):
    (plan,) = pc._latest.backend.plans.values()
    return plan.stages


@pytest.mark.parametrize("loss_fn", [F.cross_entropy, F.mse_loss])
@pytest.mark.parametrize("model", MODELS)
def test_the_gradients_are_the_literal_programs(in_double, model, loss_fn):
    pc, found = trained(MODELS[model], loss_fn=loss_fn, backend="aten")
    assert sums(pc) == {"_0"}
    _, expected = trained(MODELS[model], loss_fn=loss_fn, optimize=False)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [3, 40])
@pytest.mark.parametrize("build", [deep, shallow])
def test_it_holds_for_any_number_of_steps_of_any_size(in_double, build, steps):
    rule = pccompile.Strict(steps=steps, step_size=1.1)
    pc, found = trained(build, rule, backend="aten")
    assert sums(pc) == {"_0"}
    _, expected = trained(build, rule, optimize=False)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not inductor.is_available("cpu"), reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize("build", [deep, shallow])
def test_inductor_computes_the_same(build):
    pc, found = trained(build, dtype=torch.float32, backend="inductor")
    assert sums(pc) == {"_0"}
    _, expected = trained(build, dtype=torch.float32, optimize=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_loop_has_one_product_of_the_readers_width_in_the_place_of_two():
    pc, _ = trained(deep, dtype=torch.float32, backend="aten")
    (loop,) = (stage.piece.graph for stage in stages(pc) if stage.piece.loop)
    nodes = [node for node in loop.nodes if node.op == "call_function"]
    products = [tuple(node.meta["val"].shape) for node in nodes if "mm" in str(node.target)]
    assert sorted(products) == [(8, 4), (8, 10), (8, 10)]  # of the last layer, there and back, and of the second
    assert not any(getattr(node.meta["val"], "shape", ()) == (8, 16) for node in nodes)


@pytest.mark.parametrize("build", [deep, shallow])
def test_what_the_reader_predicted_first_is_kept_rather_than_computed_again(build):
    pc, _ = trained(build, dtype=torch.float32, backend="aten")
    before, loop = next((one, two) for one, two in pairwise(stages(pc)) if two.piece.loop)
    products = [node for node in before.piece.graph.nodes if "mm" in str(node.target)]
    assert [str(node) for node in products] == ["_2_weight_gram"]
    (constant,) = (key for key in loop.piece.inputs if key.endswith("_constant"))
    assert constant in stages(pc)[0].piece.outputs


@pytest.mark.parametrize(
    ("build", "rule", "rows", "dtype"),
    [
        (deep, pccompile.Incremental(steps=6, step_size=0.2), 8, torch.float32),
        (deep, pccompile.Strict(steps=6, step_size=0.2, optimizer="momentum"), 8, torch.float32),
        (deep, pccompile.Strict(steps=6, step_size=0.2, tolerance=1e-9), 8, torch.float32),
        (deep, pccompile.Strict(steps=6, step_size=0.2, learn_errors="previous"), 8, torch.float32),
        (Skip, STRICT, 8, torch.float32),
        (widening, STRICT, 8, torch.float32),
        (wide, STRICT, 1, torch.float32),
        (deep, STRICT, 8, torch.float64),
    ],
    ids=[
        *("weights move", "momentum", "energies are read", "errors are read", "two readers", "a wide reader"),
        *("one row", "float64"),
    ],
)
def test_otherwise_the_value_is_carried(build, rule, rows, dtype):
    pc, found = trained(build, rule, rows, dtype, backend="aten")
    assert not sums(pc)
    _, expected = trained(build, rule, rows, dtype, optimize=False)
    exact = dtype is torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-10 if exact else 1e-4, atol=1e-12 if exact else 1e-6)


def test_with_energies_recorded_the_value_is_carried():
    torch.manual_seed(0)
    pc = pccompile.compile(deep(), STRICT, loss_fn=F.cross_entropy, backend="aten")
    pc.record_energies = True
    pc.loss(torch.randn(8, 12), torch.arange(8) % 4).backward()
    assert len(pc.energies) == STRICT.steps + 1 and not sums(pc)


def squared_sum(outputs, target):
    return (outputs.sum(1) - target).square().mean()


@pytest.mark.parametrize("backend", ["aten", "inductor"])
def test_with_errors_that_are_numbers_expanded_the_value_is_carried(backend):
    pc, found = trained(shallow, dtype=torch.float32, loss_fn=squared_sum, backend=backend)
    assert not sums(pc)
    _, expected = trained(shallow, dtype=torch.float32, loss_fn=squared_sum, optimize=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
