"""What is the same in every step of inference is computed once, before the steps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile

PIECES = {"before_error_sweep_2", "error_sweep_2"}


def pieces(model, x, y, rule, loss_fn=F.cross_entropy):
    pc = pccompile.compile(model, rule, loss_fn=loss_fn, backend="aten", dynamic=False)
    if rule.name == "Incremental":
        pc.step(x, y, torch.optim.SGD(model.parameters(), lr=0.01))
    else:
        pc.loss(x, y).backward()
    (plan,) = pc._latest.backend.plans.values()
    (sweep,) = plan.sweeps.values()
    graphs = {stage.piece.name: stage.piece.graph for stage in sweep.stages}
    return {name: [str(n.target) for n in graph.nodes if n.op == "call_function"] for name, graph in graphs.items()}


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(4, 8), torch.tensor([0, 2, 1, 1])


def test_transposed_weights_and_the_targets_part_of_the_loss_leave_the_loop(batch):
    found = pieces(mlp(), *batch, pccompile.Strict(steps=5))
    assert set(found) >= PIECES
    assert not any("aten.t." in target or "nll_loss" in target for target in found["error_sweep_2"])
    assert sum("nll_loss_backward" in target for target in found["before_error_sweep_2"]) == 1


def test_the_first_layer_on_a_clamped_input_is_predicted_once(batch):
    x, y = batch
    loop = pieces(mlp().double(), x.double(), y, pccompile.Strict(steps=5))["error_sweep_2"]
    assert sum("addmm" in target for target in loop) == 2  # of three layers


def test_what_a_parameter_enters_stays_in_a_loop_in_which_parameters_move(batch):
    found = pieces(mlp(), *batch, pccompile.Incremental(steps=5))
    (loop,) = (targets for name, targets in found.items() if f"before_{name}" in found)
    assert any("aten.t." in target for target in loop)


def summed(outputs, target):
    return F.nll_loss(F.log_softmax(outputs, 1), target, reduction="sum")


RULES = [pccompile.Strict(steps=6, step_size=0.2), pccompile.Incremental(steps=4, step_size=0.2)]


@pytest.mark.parametrize("loss_fn", [F.cross_entropy, F.mse_loss, summed])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_result_is_the_literal_programs(batch, rule, loss_fn):
    x, y = batch
    y = torch.randn(4, 3, dtype=torch.float64) if loss_fn is F.mse_loss else y
    trained = []
    for options in ({"optimize": False}, {"backend": "aten"}):
        model = mlp().double()
        pc = pccompile.compile(model, rule, loss_fn=loss_fn, dynamic=False, **options)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            pc.step(x.double(), y, optimizer)
        trained.append([p.detach() for p in model.parameters()])
    for ours, literal in zip(*trained, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-10, atol=1e-12)
