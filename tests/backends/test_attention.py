"""Attention under Z-IL stays whole: no flat graph has the matrix of queries times keys."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile

LENGTH = 37  # no other size of the model


class Block(nn.Module):
    """Self-attention as GPTs have it: one product for queries, keys and values, and one for what is attended."""

    def __init__(self, causal):
        super().__init__()
        self.inputs, self.output, self.causal = nn.Linear(16, 48), nn.Linear(16, 16), causal

    def forward(self, x):
        query, key, value = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.inputs(x).chunk(3, -1))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return x + self.output(attended.transpose(1, 2).flatten(2))


def shapes(pc):
    """Those of all values of the flat graphs, of the inference that ran last."""
    plan = pc._latest.backend.latest
    stages = [plan.prediction, *(stage for sweep in plan.sweeps.values() for stage in sweep.stages)]
    values = (node.meta.get("val") for stage in stages for node in stage.piece.graph.nodes)
    flat = (part for value in values for part in (value if isinstance(value, list | tuple) else [value]))
    return [tuple(part.shape) for part in flat if isinstance(part, torch.Tensor)]


@pytest.mark.parametrize("causal", [False, True])
def test_no_value_under_zil_has_the_length_twice(causal):
    torch.manual_seed(0)
    model, x = nn.Sequential(Block(causal), Block(causal)), torch.randn(3, LENGTH, 16)
    pc = pccompile.compile(model, pccompile.ZIL(), loss_fn=F.mse_loss, backend="aten")
    pc.loss(x, torch.zeros_like(x)).backward()
    found = shapes(pc)
    assert (3, 2, LENGTH, 8) in found
    assert not [shape for shape in found if shape.count(LENGTH) > 1]
