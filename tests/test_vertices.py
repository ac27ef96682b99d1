"""What is a vertex."""

import torch
import torch.nn.functional as F
from torch import nn

import pccompile
from pccompile.ir.grammar import Kind


class Stack(nn.Module):
    """Returns its own loss, and beside it the middle of a layer if asked to."""

    def __init__(self, shows):
        super().__init__()
        self.first, self.second, self.shows = nn.Linear(4, 6), nn.Linear(6, 3), shows

    def forward(self, x, target):
        inside = self.first(x)
        loss = F.cross_entropy(self.second(inside.tanh()), target)
        return {"loss": loss, "inside": inside} if self.shows else {"loss": loss}


def test_what_is_returned_beside_a_loss_inside_is_no_vertex_for_that():
    hidden = {}
    for shows in (False, True):
        torch.manual_seed(0)
        pc = pccompile.compile(Stack(shows), pccompile.Strict(steps=3))
        x, target = torch.randn(5, 4), torch.arange(5) % 3
        outputs = pc(x, target)
        hidden[shows] = [(v.name, v.operator) for v in pc.program.vertices if v.kind is Kind.HIDDEN]
        assert outputs["loss"].requires_grad
    assert hidden[True] == hidden[False] == [("first", "tanh.default")]
    assert torch.equal(outputs["inside"], pc.model.first(x))
