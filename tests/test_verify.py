"""The replay against eager: it catches what no analysis names, and leaves no trace."""

import copy
import time

import pytest
import torch
import torch.nn.functional as F
from models import Regularised, make
from torch import nn

import pccompile
from pccompile.capture import watch
from pccompile.errors import ReplayError
from pccompile.execution import Execution


class Net(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.fc, self.norm, self.out = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.between = between

    def forward(self, x):
        hidden = self.norm(self.fc(x))
        return self.out(self.between(hidden)), hidden


def reads_the_clock(hidden):
    return hidden * (time.perf_counter_ns() % 100_003 / 1000)  # far apart at any two readings


def asks_for_the_compiler(hidden):
    return hidden * (2 if torch.compiler.is_compiling() else 3)


def seeds(hidden):
    torch.manual_seed(7)
    return hidden * torch.rand(3)


CAUGHT = {
    "the clock": (reads_the_clock, "the model run twice from the same state disagrees with itself"),
    "a branch on being compiled": (asks_for_the_compiler, r"the output\[0\] differs by 3"),
    "a seed": (seeds, r"the output\[0\] differs"),
}


@pytest.mark.parametrize("rule", [pccompile.ZIL(), pccompile.Strict(steps=2)], ids=["zil", "strict"])
@pytest.mark.parametrize(("between", "cause"), CAUGHT.values(), ids=CAUGHT)
def test_an_output_that_differs_is_named(between, cause, rule):
    model, loss_fn = Net(between), (None if rule.exact else lambda outputs, y: F.cross_entropy(outputs[0], y))
    pc = pccompile.compile(model, rule, loss_fn, dynamic=False)
    with pytest.raises(ReplayError) as raised:
        pc(torch.randn(4, 3)) if rule.exact else pc.loss(torch.randn(4, 3), torch.randint(2, (4,)))
    text = str(raised.value)
    assert raised.match(cause if rule.exact or "itself" in cause else "the loss differs")
    assert "self.out(self.between(hidden))" in text or not rule.exact
    assert "verify=False" in text


def test_without_verification_it_goes_on():
    pc = pccompile.compile(Net(asks_for_the_compiler), verify=False, dynamic=False)
    assert pc(torch.randn(4, 3))[0].requires_grad


def test_a_gradient_that_is_lost_is_named(monkeypatch):
    """Without the guard against no_grad, a program follows what the model holds."""

    def between(hidden):
        with torch.no_grad():
            gate = torch.tanh(hidden)
        return hidden * gate

    monkeypatch.setattr(watch.Watch, "__torch_function__", lambda self, f, types, a=(), k=None: f(*a, **(k or {})))
    with pytest.raises(ReplayError, match=r"module:  fc\n[^#]*the gradient of fc\.weight differs") as raised:
        pccompile.compile(Net(between), dynamic=False)(torch.randn(4, 3))
    assert "self.norm(self.fc(x))" in raised.value.place.source


def breaking(name):
    """What a faulty capture might do to the program's feed-forward pass."""

    def feed_forward(execution, original=Execution.feed_forward):
        outputs = original(execution)
        if name == "buffer":
            execution.model.norm.running_mean.add_(1)
        elif name == "dtype":
            outputs[0] = outputs[0].double()
        elif name == "nan":
            outputs[0] = outputs[0] * float("nan")
        elif name == "input":
            execution.flat_inputs[0].data.add_(1)
        return outputs

    return feed_forward


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("buffer", r"norm\.running_mean, after the forward, differs"),
        ("dtype", r"the output\[0\] is float64\[4, 2\] where the model gives float32\[4, 2\]"),
        ("nan", r"the output\[0\] is not finite"),
        ("input", "the input x, after the forward, differs"),
    ],
)
def test_every_kind_of_difference_is_found(monkeypatch, name, cause):
    monkeypatch.setattr(Execution, "feed_forward", breaking(name))
    model = Net(torch.tanh)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ReplayError, match=cause):
        pccompile.compile(model, dynamic=False, backend="eager")(torch.randn(4, 3))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_gradient_that_the_program_does_not_give_is_named(monkeypatch):
    original = Execution.infer

    def infer(execution, *args, **kwargs):
        return {name: g for name, g in original(execution, *args, **kwargs).items() if name != "out.bias"}

    monkeypatch.setattr(Execution, "infer", infer)
    with pytest.raises(ReplayError, match=r"the gradient of out\.bias exists in the model itself only"):
        pccompile.compile(Net(torch.tanh), dynamic=False)(torch.randn(4, 3))


def test_the_replay_leaves_no_trace():
    model, x = nn.Sequential(Net(torch.tanh)), torch.randn(4, 3, requires_grad=True)
    model[0].fc.weight.grad = torch.ones(3, 3)
    fired = []
    model[0].fc.weight.register_hook(fired.append)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    pccompile.compile(model, example_inputs=x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model[0].fc.weight.grad, torch.ones(3, 3)) and model[0].fc.bias.grad is None
    assert x.grad is None and fired == [] and torch.equal(state, torch.get_rng_state())
    model(x)[0].sum().backward()
    assert len(fired) == 1  # the hook is back


def test_it_happens_once_for_each_kind_of_inputs(monkeypatch):
    calls = []
    monkeypatch.setattr("pccompile.module.verify", lambda *args: calls.append(args))
    pc = pccompile.compile(Net(torch.tanh), dynamic=False)
    for size in (4, 4, 5, 5):
        pc(torch.randn(size, 3))
    assert len(calls) == 2


def test_a_derivative_that_does_not_exist_is_left_to_training_to_report():
    class Underivable(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return torch.special.zeta(self.fc(x).abs() + 2, self.fc(x).abs() + 2)

    assert pccompile.compile(Underivable(), dynamic=False)(torch.randn(4, 3)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_compared_to_their_own_tolerance(dtype):
    model, inputs, target = make("residual blocks with batch norm", dtype)
    pccompile.compile(model, loss_fn=F.cross_entropy, dynamic=False).loss(inputs, target).backward()


def test_a_model_with_its_own_loss_is_compared_by_it_where_the_rule_needs_it():
    model, x, y = Regularised(), torch.randn(6, 4), torch.randint(5, (6,))
    for rule in (pccompile.ZIL(), pccompile.Strict(steps=2)):
        pccompile.compile(model, rule, dynamic=False)(x, labels=y)["loss"].backward()


def test_gradients_that_are_zero_but_for_rounding_do_not_matter():
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))  # the first bias has no effect
    pc = pccompile.compile(model, optimize=False, dynamic=False)
    pc(torch.randn(16, 3)).square().sum().backward()
    assert model[0].bias.grad.abs().max() < 1e-5


class Idle(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=False)  # which eager returns as it is


def test_an_operator_that_returns_its_input_as_it_is_may_be_the_whole_model():
    x = torch.randn(3, requires_grad=True)
    pccompile.compile(Idle())(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(3))
