"""Sums of errors that are mostly zeros become concatenations, of the same values."""

import operator

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import pccompile
from pccompile.lowering.parts import join_parts

aten = torch.ops.aten


def written(function, *inputs):
    """The graph of a function of ATen operators and sums, with its values' kinds."""
    graph = make_fx(function)(*inputs).graph
    for node in graph.nodes:
        node.meta["origin"] = ""
    return graph


def select(x, size, index, dim=1):
    return aten.select_backward.default(x, size, dim, index)


def with_zeros(x, before, after):
    zeros = [aten.zeros.default([2, n]) for n in (before, after)]
    return aten.cat.default([zeros[0], x, zeros[1]], 1)


CASES = {
    "every place": lambda a, b: select(a, [3, 2, 4], 1) + select(b, [3, 2, 4], 0),
    "with gaps": lambda a, b: select(a, [3, 5, 4], 3) + select(b, [3, 5, 4], -4),
    "and another": lambda a, b: (
        (select(a, [3, 3, 4], 0) + (a + b).unsqueeze(1).repeat(1, 3, 1)) + select(b, [3, 3, 4], 2)
    ),
    "slices": lambda a, b: (
        aten.slice_backward.default(a, [3, 9], 1, 5, 9, 1) + aten.slice_backward.default(b, [3, 9], 1, -9, 4, 1)
    ),
    "zeros": lambda a, b: with_zeros(a[:2], 0, 4) + with_zeros(b[:2], 4, 0),
}
LEFT = {
    "the same place": lambda a, b: select(a, [3, 2, 4], 1) + select(b, [3, 2, 4], 1),
    "other dimensions": lambda a, b: select(a, [3, 4, 4], 1) + select(b, [3, 4, 4], 1, dim=2),
    "read again": lambda a, b: (lambda part: (part + select(b, [3, 2, 4], 0)) * part)(select(a, [3, 2, 4], 1)),
    "a stride": lambda a, b: (
        aten.slice_backward.default(a, [3, 9], 1, 0, 8, 2) + aten.slice_backward.default(b, [3, 9], 1, 1, 9, 2)
    ),
    "two others": lambda a, b: (
        ((a.unsqueeze(1).repeat(1, 2, 1) + select(a, [3, 2, 4], 0)) + b.unsqueeze(1).repeat(1, 2, 1))
        + select(b, [3, 2, 4], 1)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_are_joined(case):
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    graph = written(CASES[case], a, b)
    expected = fx.GraphModule({}, graph)(a, b)
    join_parts(graph)
    graph.lint()
    assert torch.equal(fx.GraphModule({}, graph)(a, b), expected)
    targets = [node.target for node in graph.nodes]
    assert not {aten.select_backward.default, aten.slice_backward.default} & set(targets)
    assert sum(target in (aten.cat.default, aten.stack.default) for target in targets) == 1


@pytest.mark.parametrize("case", LEFT)
def test_what_is_no_sum_of_separate_parts_is_left(case):
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    graph = written(LEFT[case], a, b)
    before = str(graph)
    join_parts(graph)
    assert str(graph) == before


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def test_the_errors_of_an_opened_recurrence_are_put_together_once():
    """Of the gates' pre-activations, of the time steps of the inputs and of those of the outputs."""
    torch.manual_seed(0)
    model = Last().double()
    pc = pccompile.compile(model, pccompile.FixedPrediction(levelled=True), backend="aten")
    literal = pccompile.compile(model, pccompile.FixedPrediction(levelled=True), optimize=False)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    gradients = []
    for compiled in (pc, literal):
        model.zero_grad()
        (compiled(x) ** 2).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    (plan,) = pc._latest.backend.plans.values()
    nodes = [node for sweep in plan.sweeps.values() for stage in sweep.stages for node in stage.piece.graph.nodes]
    targets = [node.target for node in nodes]
    assert aten.select_backward.default not in targets and aten.zeros.default not in targets
    assert targets.count(operator.add) <= 5 * 6
