"""The ATen back end computes what the eager one does, bit for bit, from flat graphs that hold what they need."""

import functools
import gc
import logging
import weakref

import pytest
import torch
import torch.nn.functional as F
from models import NAMES, RULES, loss_fn, make
from rounding import assert_hardly_more_rounded
from torch import nn

import pccompile
from bench.steps.memory import peak_bytes
from pccompile.backends import BACKENDS, AtenBackend, EagerBackend


@functools.cache
def compiled(name, dtype=torch.float32):
    """A model of tests/models.py compiled once: rules and back ends share its capture."""
    model, inputs, target = make(name, dtype)
    return pccompile.compile(model, loss_fn=loss_fn, dynamic=False), inputs, target


def gradients(pc, inputs, target):
    torch.manual_seed(1)
    buffers = {name: buffer.clone() for name, buffer in pc.named_buffers()}
    found = torch.autograd.grad(pc.loss(inputs, target), list(pc.parameters()), allow_unused=True)
    changed = {name: buffer.clone() for name, buffer in pc.named_buffers()}
    with torch.no_grad():
        for name, buffer in pc.named_buffers():
            buffer.copy_(buffers[name])
    return [*found, *changed.values()]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", NAMES)
def test_it_agrees_with_the_eager_back_end_bit_for_bit(name, rule):
    """Fixed prediction's gains are multiplied elsewhere: there it agrees to rounding."""
    pc, inputs, target = compiled(name, torch.float64 if rule is RULES["strict"] else torch.float32)
    pc.rule, results, energies = rule, {}, {}
    for pc.backend in ("eager", "aten"):
        results[pc.backend] = gradients(pc, inputs, target)
        energies[pc.backend] = pc.energies
    assert pc._latest.backend.eager is None
    for ours, eager in zip(results["aten"], results["eager"], strict=True):
        assert (ours is None) == (eager is None)
        if rule.name == "FixedPrediction" and eager is not None:
            torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-6 * float(eager.abs().max()))
        else:
            assert eager is None or torch.equal(ours, eager)
    assert energies["aten"] == energies["eager"]


@pytest.mark.parametrize("name", NAMES)
def test_values_in_single_precision_take_steps_that_are_rounded_no_worse(name):
    found = {}
    for backend, dtype in (("aten", torch.float32), ("eager", torch.float32), ("eager", torch.float64)):
        pc, inputs, target = compiled(name, dtype)
        pc.rule, pc.backend = RULES["strict"], backend
        found[backend, dtype] = [part for part in gradients(pc, inputs, target) if part is not None]
    assert_hardly_more_rounded(*found.values())


def test_gains_are_multiplied_within_products_of_matrices():
    model, x, y = make("mlp")
    rule = pccompile.FixedPrediction(steps=4, step_size=0.3)
    found = {}
    for backend in ("eager", "aten"):
        pc = pccompile.compile(model, rule, loss_fn=loss_fn, backend=backend)
        found[backend] = torch.autograd.grad(pc.loss(x, y), list(model.parameters()))
    for ours, eager in zip(found["aten"], found["eager"], strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-6, atol=1e-7 * float(eager.abs().max()))
    sweep = pc.code.partition("def error_sweep")[2]
    assert sweep.count("beta = 0, alpha = gain_") == 2
    assert sweep.count("torch_Tensor_mul_(") == 2  # of the sums that are the biases' gradients
    assert " * " not in sweep


def deep(depth):
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(8, 8), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(8, 3))


def trained(model, rule=None, x=None, **options):
    """The model compiled with this back end, after one backward pass."""
    pc = pccompile.compile(model, rule, loss_fn=F.cross_entropy, backend="aten", **options)
    x = torch.randn(4, 8) if x is None else x
    pc.loss(x, torch.randint(0, 3, (len(x),))).backward()
    return pc


def plan_of(pc):
    (plan,) = pc._latest.backend.plans.values()
    return plan


def stages_of(pc):
    (sweep,) = plan_of(pc).sweeps.values()
    return sweep.stages


def test_repeated_layers_are_differentiated_once():
    counts = {depth: len(trained(deep(depth))._latest.backend.fragments) for depth in (3, 12)}
    assert counts[3] == counts[12]


def test_strict_inference_is_one_body_whatever_the_number_of_steps_and_the_step_size():
    model = deep(3).double()
    pc = trained(model, pccompile.Strict(steps=5, step_size=0.1), torch.randn(4, 8, dtype=torch.float64))
    backend, plan = pc._latest.backend, plan_of(pc)
    bodies = [stage.piece for stage in stages_of(pc) if stage.piece.loop]
    assert len(bodies) == 1
    x, y = torch.randn(4, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    for steps, step_size in ((9, 0.1), (30, 0.05)):
        pc.rule = pccompile.Strict(steps=steps, step_size=step_size)
        reference = pccompile.compile(model, pc.rule, loss_fn=F.cross_entropy, backend="eager")
        for ours, theirs in zip(gradients(pc, x, y), gradients(reference, x, y), strict=True):
            assert torch.equal(ours, theirs)
    assert pc._latest.backend is backend
    assert plan_of(pc) is plan
    assert stages_of(pc)[0].piece.graph is not None


def test_nothing_is_computed_that_nobody_asked_for():
    model = deep(2)
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    (stage,) = stages_of(trained(model))
    products = [node for node in stage.piece.graph.nodes if "mm" in str(node.target)]
    assert len(products) == 2  # the last layer's weight, and the error of the layer above the frozen ones
    assert all("0_weight" not in key and "input" not in key for key in stage.piece.inputs)


def masks_of(stages, operator):
    nodes = [node for stage in stages for node in stage.piece.graph.nodes if operator in str(node.target)]
    return [node.args[-1] for node in nodes]


def test_derivatives_of_several_inputs_are_asked_for_those_that_somebody_reads():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(32, 3)
    )
    x = torch.randn(4, 1, 8, 8)
    loop = [stage for stage in stages_of(trained(model, pccompile.Strict(steps=4), x)) if stage.piece.loop]
    assert masks_of(loop, "convolution_backward") == [[True, False, False]]
    model[1].bias.requires_grad_(False)
    model[3].weight.requires_grad_(False)
    stages = stages_of(trained(model, x=x))
    assert masks_of(stages, "batch_norm_backward") == [[True, True, False]]
    assert masks_of(stages, "convolution_backward") == [[True, False, True], [False, True, True]]


def test_residuals_are_outputs_where_the_derivative_can_be_had_from_them():
    activations = (nn.Tanh(), nn.ReLU(), nn.LeakyReLU(0.2))
    model = nn.Sequential(*(layer for a in activations for layer in (nn.Linear(8, 8), a)), nn.Linear(8, 3))
    (stage,) = stages_of(trained(model))
    kept = set(stage.piece.inputs)
    assert {"_1", "_3", "_5"} <= kept  # what the activations gave
    assert not {"_0", "_2", "_4"} & kept  # not what they were given


def test_an_output_that_the_loss_does_not_read_leaves_no_gradient():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, x):
            h = torch.relu(self.body(x))
            return self.a(h), self.b(h)

    model = Two()
    pc, x = pccompile.compile(model, backend="aten"), torch.randn(4, 8)
    for read in (lambda out: out[0].sum(), lambda out: out[1].sum(), lambda out: out[0].sum() + out[1].pow(2).sum()):
        found = {}
        for module in (model, pc):
            model.zero_grad(set_to_none=True)
            read(module(x)).backward()
            found[module] = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        for ours, theirs in zip(found[pc], found[model], strict=True):
            assert (ours is None) == (theirs is None)
            assert theirs is None or torch.equal(ours, theirs)
    assert len(plan_of(pc).sweeps) == 3


def test_a_gradient_of_another_memory_layout_is_taken():
    model = nn.Conv2d(1, 3, 3)
    pc, x = pccompile.compile(model, backend="aten"), torch.randn(2, 1, 6, 6)
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    found = []
    for module in (model, pc):
        model.zero_grad(set_to_none=True)
        module(x).backward(weight)
        found.append(model.weight.grad.clone())
    torch.testing.assert_close(*found)


def test_backward_runs_twice_where_the_graph_is_retained():
    model = deep(2)
    pc, x = pccompile.compile(model, backend="aten"), torch.randn(4, 8)
    loss = pc(x).pow(2).sum()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_sizes_that_come_and_go_have_graphs_of_their_own():
    model = deep(2)
    pc = pccompile.compile(model, loss_fn=F.cross_entropy, backend="aten")
    for batch in (4, 7, 4):
        x, y = torch.randn(batch, 8), torch.randint(0, 3, (batch,))
        assert pccompile.check(pc, x, y).bit_equal
    assert len(pc._latest.backend.plans) == 2


def test_what_cannot_be_written_runs_eagerly_and_says_why(caplog):
    caplog.set_level(logging.INFO, "pccompile")
    model = nn.Sequential(nn.Linear(8, 8), nn.RReLU(), nn.Linear(8, 3))
    pc = trained(model, pccompile.Strict(steps=3, step_size=0.1))
    assert pc._latest.backend.eager is not None
    assert "writes into a tensor that is read again" in caplog.text


def test_what_runs_reads_as_python():
    code = trained(deep(1)).code
    assert "def prediction_sweep(self, inputs):" in code
    assert "_1 = torch.tanh_(_0)" in code
    assert "_2_to__1 = torch.mm(" in code
    assert "tanh_backward" in code[code.index("def error_sweep(") :]


def test_a_call_without_a_backward_pass_leaves_nothing_behind():
    pc = pccompile.compile(deep(1), backend="aten", dynamic=False)
    pc(torch.randn(4, 8))  # which captures, and leaves what the collector takes
    gc.collect()
    gc.disable()
    try:
        nodes = [weakref.ref(pc(torch.randn(4, 8)).grad_fn) for _ in range(3)]
        with pccompile.record(pc):  # the long way
            nodes += [weakref.ref(pc(torch.randn(4, 8)).grad_fn.execution) for _ in range(3)]
        assert not any(node() for node in nodes)
    finally:
        gc.enable()


@pytest.mark.parametrize("fault", [lambda found: {k: (v[0] * 1.1,) for k, v in found.items()}, lambda found: 1 / 0])
def test_a_back_end_that_disagrees_with_the_model_is_replaced_by_the_eager_one_with_a_warning(
    monkeypatch, caplog, fault
):
    infer = AtenBackend.infer
    monkeypatch.setattr(AtenBackend, "infer", lambda self, *args: fault(infer(self, *args)))
    model, x, y = deep(2), torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    pc = pccompile.compile(model, loss_fn=F.cross_entropy, dynamic=False)
    assert pccompile.check(pc, x, y).bit_equal
    assert isinstance(pc._latest.backend, EagerBackend)
    assert "the eager back end runs Sequential, as 'aten' fails" in caplog.text


def test_another_back_end_that_fails_is_replaced_by_aten(monkeypatch, caplog):
    class Failing(AtenBackend):
        def infer(self, *args):
            raise RuntimeError("no such luck")

    monkeypatch.setitem(BACKENDS, "inductor", Failing)
    model, x, y = deep(2), torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    pc = pccompile.compile(model, loss_fn=F.cross_entropy, backend="inductor", dynamic=False)
    assert pccompile.check(pc, x, y).bit_equal
    assert type(pc._latest.backend) is AtenBackend
    assert "the aten back end runs Sequential, as 'inductor' fails: no such luck" in caplog.text


def test_what_the_model_itself_is_at_fault_for_is_refused_whatever_the_back_end():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.calls = nn.Linear(8, 3), [0]

        def forward(self, x):
            self.calls[0] += 1
            return self.layer(x) * self.calls[0]

    with pytest.raises(pccompile.PCCompileError):
        pccompile.compile(Counts(), backend="aten", dynamic=False)(torch.randn(4, 8))


def test_a_step_needs_no_more_memory_than_autograds_where_outputs_are_large():
    model, x, y = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4096)), torch.randn(64, 8), torch.arange(64)
    pc = pccompile.compile(model, loss_fn=F.cross_entropy)
    steps = [lambda: pc.loss(x, y).backward(), lambda: F.cross_entropy(model(x), y).backward()]
    peaks = []
    for step in steps:
        step()
        model.zero_grad(set_to_none=True)
        peaks.append(peak_bytes(step, "cpu"))
    assert peaks[0] <= peaks[1]
