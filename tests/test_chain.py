"""Long chains compile and train without meeting the recursion limit."""

import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import pccompile
from bench.chain import measure


@pytest.fixture
def recursion_limit() -> Iterator[int]:
    """Python's own limit, whatever libraries have set."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield 1000
    sys.setrecursionlimit(before)


def test_two_thousand_layers_compile_and_train(recursion_limit: int) -> None:
    layers = 2 * recursion_limit
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))
    pc = pccompile.compile(model, capture="symbolic", example_inputs=torch.randn(2, 2))
    pc(torch.randn(2, 2)).sum().backward()
    assert pc.program.depth == layers - 1
    assert len(pc.program.schedule) == 3 * layers
    assert all(p.grad is not None for p in model.parameters())
    assert pccompile.Program.from_json(pc.program.to_json()) == pc.program


def test_the_benchmark_measures_capture_compile_and_step():
    assert all(seconds > 0 for seconds in measure(5, "symbolic"))
