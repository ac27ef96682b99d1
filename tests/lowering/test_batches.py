"""Products of all time steps with one weight are one product, and gradients those of the literal program."""

import pytest
import torch
from torch import nn

import pccompile

aten = torch.ops.aten
RULE = pccompile.FixedPrediction(steps=9, step_size=0.3, levelled=True)
STEPS = 10


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.embedding, self.net = nn.Embedding(7, 3), kind(3, 4, **options)
        self.head = nn.Linear(4 * (2 if options.get("bidirectional") else 1), 2)

    def forward(self, tokens):
        return self.head(self.net(self.embedding(tokens))[0])


def gradients(pc, tokens):
    outputs = pc(tokens)
    direction = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    return torch.autograd.grad((outputs * direction).sum(), list(pc.model.parameters()))


@pytest.mark.parametrize(
    "kind, options, products",
    [
        (nn.LSTM, {"batch_first": True}, 3 + 4),
        (nn.LSTM, {}, 3 + 4),
        (nn.GRU, {"batch_first": True}, None),
        (nn.RNN, {"batch_first": True}, None),
        (nn.LSTM, {"batch_first": True, "num_layers": 2, "bidirectional": True}, None),
    ],
    ids=["lstm", "time first", "gru", "rnn", "deep both ways"],
)
def test_gradients_are_those_of_the_literal_program(kind, options, products):
    torch.manual_seed(0)
    model = Recurrent(kind, **options).double()
    tokens = torch.arange(2 * STEPS).view((2, STEPS) if options.get("batch_first") else (STEPS, 2)) % 7
    pc = pccompile.compile(model, RULE, backend="aten", dynamic=False)
    literal = pccompile.compile(model, RULE, optimize=False, dynamic=False)
    torch.testing.assert_close(gradients(pc, tokens), gradients(literal, tokens), rtol=1e-10, atol=1e-12)
    (plan,) = pc._latest.backend.plans.values()
    (sweep,) = plan.sweeps.values()
    nodes = [node for stage in sweep.stages for node in stage.piece.graph.nodes]
    found = sum(node.target is aten.mm.default for node in nodes)
    if products is not None:
        assert found <= STEPS + products  # what recurs, and one for each weight and for what it reads
        forward = plan.prediction.piece.graph.find_nodes(op="call_function", target=aten.addmm.default)
        assert len(forward) == STEPS + 2  # what recurs, all inputs, and the head


def test_exact_rules_multiply_step_by_step_as_autograd_does():
    torch.manual_seed(0)
    model = Recurrent(nn.LSTM, batch_first=True)
    tokens = torch.arange(2 * STEPS).view(2, STEPS) % 7
    found = [
        gradients(pccompile.compile(model, decompose=True, backend=backend, dynamic=False), tokens)
        for backend in ("aten", "eager")
    ]
    assert all(map(torch.equal, *found))
