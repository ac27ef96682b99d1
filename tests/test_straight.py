"""The shortest way through a compiled model computes what the long one does, and is left where something may happen."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from models import loss_fn, make
from torch import nn

import pccompile
from pccompile.errors import DoubleBackwardError, NonFiniteError, UsageError

RULES = {"zil": pccompile.ZIL(), "levelled": pccompile.FixedPrediction(7, 0.3, levelled=True)}


def mlp(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5)).to(dtype)
    return model, torch.randn(6, 12, dtype=dtype), torch.randint(5, (6,))


def compiled(model, rule=RULES["zil"], backend="aten", **options):
    return pccompile.compile(model, rule, loss_fn=F.cross_entropy, backend=backend, **options)


def gradients(pc, loss):
    return torch.autograd.grad(loss, list(pc.parameters()), allow_unused=True)


def way(pc, loss_inside=True):
    """The shortest way that the last call had, if it had one."""
    return pc._recent[not loss_inside]._straight


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(
    "name", ["mlp", "mnist network", "dense concatenation", "tied weights", "transformer encoder with dropout", "lstm"]
)
def test_both_ways_give_the_same_bits(name, rule):
    model, inputs, target = make(name, torch.float32)
    pc = pccompile.compile(model, rule, loss_fn=loss_fn)
    torch.manual_seed(1)
    long = gradients(pc, pc.loss(inputs, target))
    assert way(pc) is None
    for _ in range(2):
        torch.manual_seed(1)
        short = gradients(pc, pc.loss(inputs, target))
    assert way(pc) is not None
    for one, other in zip(long, short, strict=True):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))


@pytest.mark.parametrize("backend", ["aten", "inductor", "auto"])
def test_every_back_end_of_flat_graphs_has_it(backend):
    model, x, y = mlp()
    pc = compiled(model, backend=backend)
    expected = gradients(model, F.cross_entropy(model(x), y))
    for _ in range(3):
        found = gradients(pc, pc.loss(x, y))
    assert way(pc) is not None
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one)


def test_a_loss_outside_and_learned_inputs():
    model, x, y = mlp(torch.float64)
    pc = pccompile.compile(model)
    x.requires_grad_()
    for _ in range(3):
        pc.zero_grad()
        x.grad = None
        F.cross_entropy(pc(x), y).backward()
    assert way(pc, loss_inside=False) is not None
    found = [x.grad, *(p.grad for p in model.parameters())]
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), [x, *model.parameters()])
    assert all(map(torch.equal, found, expected))


def test_an_output_that_the_error_sweep_reads_keeps_nothing_alive():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())  # tanh's derivative is told from the output
    pc = pccompile.compile(model)
    x = torch.randn(3, 4)
    pc(x)
    gc.collect()
    gc.disable()
    try:
        output = pc(x)
        assert way(pc, loss_inside=False) is not None
        node = weakref.ref(output.grad_fn)
        del output
        assert node() is None
    finally:
        gc.enable()


def test_a_second_backward_pass_needs_the_graph_kept():
    model, x, y = mlp()
    pc = compiled(model)
    pc.loss(x, y)
    loss = pc.loss(x, y)
    first = torch.autograd.grad(loss, list(pc.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(pc.parameters()))
    assert way(pc) is not None and all(map(torch.equal, first, second))
    with pytest.raises(UsageError, match="second time"):
        loss.backward()


def test_double_backward_is_refused():
    model, x, y = mlp()
    pc = compiled(model)
    pc.loss(x, y)
    with pytest.raises(DoubleBackwardError):
        torch.autograd.grad(pc.loss(x, y), list(pc.parameters()), create_graph=True)


def test_two_steps_at_once_and_an_error_of_any_layout():
    model, x, _ = mlp()
    pc = pccompile.compile(model)
    pc(x)
    one, other = pc(x), pc(2 * x)
    error = torch.randn(5, 6).t()
    found = [torch.autograd.grad(output, list(pc.parameters()), error) for output in (one, other)]
    expected = [torch.autograd.grad(model(k * x), list(pc.parameters()), error) for k in (1, 2)]
    for ours, theirs in zip(found, expected, strict=True):
        for gradient, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, reference)


def test_backward_inside_autocast_computes_in_the_precision_of_the_forward_pass():
    model, x, y = mlp()
    pc = compiled(model)
    pc.loss(x, y)
    expected = gradients(pc, pc.loss(x, y))
    loss = pc.loss(x, y)
    assert way(pc) is not None
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(pc, loss)
    assert all(map(torch.equal, expected, found))


def test_what_changes_between_calls_is_seen():
    model, x, y = mlp()
    pc = compiled(model, RULES["levelled"])
    for _ in range(3):
        before = gradients(pc, pc.loss(x, y))
    pc.rule = pccompile.FixedPrediction(3, 0.1, levelled=True)
    for _ in range(3):
        after = gradients(pc, pc.loss(x, y))
    fresh = gradients(pc, compiled(model, pc.rule).loss(x, y))
    assert not torch.equal(before[0], after[0]) and all(map(torch.equal, after, fresh))
    model[0].weight = nn.Parameter(2 * model[0].weight.detach())
    expected = gradients(pc, compiled(model, pc.rule).loss(x, y))
    assert all(map(torch.equal, expected, gradients(pc, pc.loss(x, y))))
    model[0].weight.requires_grad_(False)
    assert gradients_of_learned(pc, pc.loss(x, y)) == ["0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]


def gradients_of_learned(pc, loss):
    pc.zero_grad(set_to_none=True)
    loss.backward()
    return [name for name, parameter in pc.named_parameters() if parameter.grad is not None]


def test_a_recording_sees_every_step():
    model, x, y = mlp()
    pc = compiled(model)
    for _ in range(3):
        pc.loss(x, y).backward()
    with pccompile.record(pc) as recording:
        pc.loss(x, y).backward()
    assert len(recording.frames) == 1
    pc.loss(x, y).backward()
    assert len(recording.frames) == 1


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),  # writes its buffers
        nn.ModuleDict({"a": nn.Linear(4, 3)}),  # with two outputs, below
    ],
    ids=["buffers", "two outputs"],
)
def test_other_programs_go_the_long_way(model):
    if isinstance(model, nn.ModuleDict):
        model.forward = lambda x: (model["a"](x), x.sum() * model["a"].bias.sum())
    pc = pccompile.compile(model, verify=False)
    x = torch.randn(5, 4)
    for _ in range(3):
        output = pc(x)
    assert way(pc, loss_inside=False) is None
    assert pc._recent[True]._looked and pc._recent[True]._run is None  # it is looked for once
    part = output[0] if isinstance(output, tuple) else output
    part.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.ndim == 2)


@pytest.mark.parametrize("returned", ["input", "parameter"])
def test_a_model_that_returns_what_it_is_given_goes_the_long_way(returned):
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))

        def forward(self, x):
            return x if returned == "input" else self.weight

    pc, x = pccompile.compile(Returns()), torch.randn(2, 3, requires_grad=True)
    for _ in range(3):
        pc(x).sum().backward()
    assert way(pc, loss_inside=False) is None
    assert torch.equal(x.grad if returned == "input" else pc.weight.grad, torch.full_like(pc(x).detach(), 3.0))


STRICT = {
    "strict": pccompile.Strict(5, 0.1),
    "two steps": pccompile.Strict(2, 0.1),
    "momentum": pccompile.Strict(6, 0.05, optimizer="momentum"),
    "adam": pccompile.Strict(6, 0.05, optimizer="adam"),
    "previous errors": pccompile.Strict(5, 0.1, learn_errors="previous"),
    "as given": pccompile.Strict(5, 0.1, batch_energy="as_given"),
    "unlevelled": pccompile.FixedPrediction(5, 0.1),
}


@pytest.mark.parametrize("rule", STRICT.values(), ids=STRICT)
@pytest.mark.parametrize("name", ["mlp", "skips", "mnist network"])
def test_inference_in_loops_gives_the_same_bits(name, rule):
    model, inputs, target = make(name, torch.float64)
    pc = pccompile.compile(model, rule, loss_fn=loss_fn)
    results = []
    for _ in range(4):
        results.append(gradients(pc, 3 * pc.loss(inputs, target)))
        pc.loss(inputs, target)  # of which nothing is learned
    assert way(pc) is not None
    assert all(map(torch.equal, results[0], results[-1]))
    other = gradients(pc, -pc.loss(inputs, target))
    for one, tripled in zip(other, results[0], strict=True):
        torch.testing.assert_close(-3 * one, tripled)


def test_inference_whose_energy_is_read_goes_the_long_way():
    model, x, y = mlp()
    pc = compiled(model, pccompile.Strict(5, 0.1, tolerance=1e-9))
    for _ in range(3):
        pc.loss(x, y).backward()
    assert way(pc) is None and pc.energies
    pc.rule, pc.record_energies = pccompile.Strict(5, 0.1), True
    for _ in range(3):
        pc.loss(x, y).backward()
    assert way(pc) is None and len(pc.energies) == 6


def test_inference_that_diverges_is_told_with_the_vertex():
    model, x, y = mlp()
    pc = compiled(model, pccompile.Strict(60, 0.1))
    for _ in range(3):
        pc.loss(x, y).backward()
    assert way(pc) is not None
    with torch.no_grad():
        model[2].bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="error of 0 is not finite"):
        pc.loss(x, y).backward()
