"""Buffers that a forward changes: what reads them before and after, and what is copied."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile

X, Y = torch.linspace(-1, 1, 12).view(4, 3), torch.arange(4) % 2


class Scaled(nn.Module):
    """A scale that grows; where it multiplies, the derivative reads what it was."""

    def __init__(self, multiplies, grows=True):
        super().__init__()
        self.layer, self.multiplies, self.grows = nn.Linear(3, 2), multiplies, grows
        self.register_buffer("scale", torch.ones(2))

    def forward(self, x):
        out = self.layer(x)
        out = out * self.scale if self.multiplies else out + self.scale
        if self.grows:
            self.scale.add_(1)
        return out


def gradients(model, output):
    return torch.autograd.grad(F.cross_entropy(output, Y), list(model.parameters()))


@pytest.mark.parametrize("backend", ["eager", "aten"])
@pytest.mark.parametrize("multiplies", [True, False])
def test_an_error_sweep_reads_a_buffer_as_it_was_in_the_feed_forward_pass(backend, multiplies):
    ours, still = Scaled(multiplies), Scaled(multiplies, grows=False)
    still.load_state_dict(ours.state_dict())
    pc = pccompile.compile(ours, backend=backend, verify=False)
    for step in (1.0, 2.0, 3.0):
        still.scale.fill_(step)
        mine, other = gradients(ours, pc(X)), gradients(still, still(X))
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
        assert ours.scale.eq(step + 1).all()


def test_only_a_buffer_that_nothing_reads_later_is_handed_over_without_a_copy():
    for model, expected in ((Scaled(multiplies=True), False), (Scaled(multiplies=False), True)):
        pc = pccompile.compile(model, backend="aten", verify=False)
        gradients(model, pc(X))
        (plan,) = pc._latest.backend.plans.values()
        assert ("scale" in plan.consumed) is expected


def test_of_a_normalisation_only_its_statistics_leave_the_graph():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    pc = pccompile.compile(model, loss_fn=F.cross_entropy, backend="aten", dynamic=False, verify=False)
    pc.loss(X, Y).backward()
    (plan,) = pc._latest.backend.plans.values()
    graph = plan.prediction.piece.graph
    (relu,) = graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    assert list(relu.args[0].users) == [relu]
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} <= plan.consumed
