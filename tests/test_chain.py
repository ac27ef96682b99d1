"""Long chains compile and train without meeting the recursion limit."""

import sys

import torch
from torch import nn

import pccompile
from bench.chain import measure


def test_two_thousand_layers_compile_and_train():
    layers = 2000
    assert layers > sys.getrecursionlimit()
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))
    pc = pccompile.compile(model, capture="symbolic", example_inputs=torch.randn(2, 2))
    pc(torch.randn(2, 2)).sum().backward()
    assert pc.program.depth == layers - 1
    assert len(pc.program.schedule) == 3 * layers
    assert all(p.grad is not None for p in model.parameters())
    assert pccompile.Program.from_json(pc.program.to_json()) == pc.program


def test_the_benchmark_measures_capture_compile_and_step():
    assert all(seconds > 0 for seconds in measure(5, "symbolic"))
