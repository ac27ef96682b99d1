"""torch.no_grad, inference_mode, detach and .data inside the forward, and writes under them."""

import pytest
import torch
from agreement import Net, agree, batch, refused
from torch import nn

import pccompile
from pccompile.errors import CaptureError


def by_context(net, hidden):
    with torch.no_grad():
        gate = torch.tanh(net.fc(hidden))
    return hidden * gate


@torch.no_grad()
def gate(hidden):
    return torch.tanh(hidden)


def by_decorator(net, hidden):
    return hidden * gate(hidden)


def by_function(net, hidden):
    torch.set_grad_enabled(False)
    values = torch.tanh(hidden)
    torch.set_grad_enabled(True)
    return hidden * values


def by_inference_mode(net, hidden):
    with torch.inference_mode():
        values = torch.tanh(hidden)
    return hidden * values.clone()


def enabled_again(net, hidden):
    with torch.no_grad():
        held = torch.tanh(hidden)
        with torch.enable_grad():
            followed = torch.sin(hidden)
        same = hidden
    return held * followed + same


def views(net, hidden):
    with torch.no_grad():
        first, second = hidden.view(-1).chunk(2)
    return hidden * first.sum() + second.mean()


def under_autocast(net, hidden):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        values = net.fc(hidden)
    return hidden * values.float()


DETACHED = {
    "no_grad": by_context,
    "a decorator": by_decorator,
    "set_grad_enabled": by_function,
    "inference_mode": by_inference_mode,
    "enable_grad inside no_grad": enabled_again,
    "views under no_grad": views,
    "no_grad under autocast": under_autocast,
    "detach": lambda net, hidden: hidden * torch.tanh(hidden).detach(),
    "data": lambda net, hidden: hidden * torch.tanh(hidden).data,
    "a straight-through estimator": lambda net, hidden: hidden + (hidden.round() - hidden).detach(),
}


@pytest.mark.parametrize("between", DETACHED.values(), ids=DETACHED)
def test_what_is_made_without_gradients_has_none(between):
    agree(lambda: Net(between), batch())


def test_the_source_lines_under_no_grad_survive():
    pc = agree(lambda: Net(by_context), batch())
    assert all(vertex.source for vertex in pc.program.vertices if vertex.nodes)


def test_symbolic_tracing_which_does_not_see_no_grad_refuses_it():
    refused(Net(by_context), batch(), match="does not trace torch.no_grad", line="gate = ", capture="symbolic")


def scales_in_place(net, hidden):
    hidden = hidden * 1
    with torch.no_grad():
        hidden.mul_(2)  # the write
    return hidden


def renormalises_a_parameter(net, hidden):
    with torch.no_grad():
        net.out.weight.copy_(net.out.weight / net.out.weight.norm())  # the write
    return hidden


def writes_data(net, hidden):
    net.out.weight.data.mul_(0.5)  # the write
    return hidden


@pytest.mark.parametrize(
    ("between", "cause"),
    [
        (scales_in_place, "a write under torch.no_grad"),
        (renormalises_a_parameter, "a write under torch.no_grad"),
        (writes_data, "writes into the parameter out.weight"),
    ],
)
def test_a_write_that_bypasses_autograd_is_refused(between, cause):
    refused(Net(between), batch(), match=cause, line="")


def test_an_embedding_that_renormalises_its_weight_is_refused_unless_it_is_frozen():
    def make(frozen):
        embedding = nn.Embedding(5, 3, max_norm=0.1)
        embedding.weight.requires_grad_(not frozen)
        return nn.Sequential(embedding, nn.Linear(3, 2))

    tokens = torch.tensor([0, 2, 2])
    with pytest.raises(CaptureError, match=r"writes into the parameter 0\.weight"):
        pccompile.compile(make(frozen=False))(tokens)
    agree(lambda: make(frozen=True), tokens)


def test_a_momentum_copy_of_frozen_parameters_moves_as_it_does_in_eager_mode():
    class Momentum(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)

        def forward(self, x):
            with torch.no_grad():
                self.teacher.weight.mul_(0.9).add_(self.student.weight, alpha=0.1)
            return self.student(x) * self.teacher(x)

    agree(Momentum, batch(), batch())


def test_a_constant_that_the_forward_writes_into_is_refused():
    constant = torch.zeros(3)
    refused(Net(lambda net, h: h * constant.add_(1)), batch(), match="no buffer of the model", line="constant.add_(1)")
    assert not constant.any()
