"""Operators that torch.export puts in place of what eager mode runs, where the difference would show."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile
from pccompile.capture.restore import overwritten


class DropoutOutput(nn.Module):
    """Returns what a dropout made."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(self, x):
        return F.dropout(self.fc(x), 0.5)


class Overwriting(nn.Module):
    """Fills a tensor step by step, as recurrent models and caches do."""

    def __init__(self):
        super().__init__()
        self.fc, self.lost = nn.Linear(4, 4), nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        steps = torch.zeros(3, *x.shape)
        for t in range(3):
            x = torch.tanh(self.fc(x))
            steps[t] = x
        gone = self.lost.clone()
        gone.copy_(steps[0, 0])
        return steps, gone


@pytest.mark.parametrize(("kind", "shape"), [(DropoutOutput, (5, 4)), (Overwriting, (5, 4))])
def test_it_trains_as_in_eager_mode(kind, shape):
    model, x = kind(), torch.randn(shape)
    twin, pc = copy.deepcopy(model), pccompile.compile(model)
    for module in (twin, pc):
        torch.manual_seed(3)
        outputs = module(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(output.sin().sum() for output in outputs).backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)  # zero, not None, for what was overwritten


def test_overwritten_is_copy_without_the_write():
    target, source = torch.zeros(2, 3, dtype=torch.float64), torch.arange(3.0)
    assert torch.equal(overwritten(target, source), source.double().expand(2, 3))
    assert not target.any()
