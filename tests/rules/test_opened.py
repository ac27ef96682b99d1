"""The rules on the inside of an LSTM, branching and multiplicative, against their equations written out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from references import (
    Gradients,
    Graph,
    Tensor,
    Tensors,
    Vertex,
    clamped_tensors,
    feed_forward,
    fixed_prediction,
    relative_error,
    strict,
    worst,
)
from torch import nn

import pccompile

BATCH, STEPS, WIDTH, UNITS = 5, 3, 2, 3


class Last(nn.Module):
    """An LSTM over time, and a linear layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(WIDTH, UNITS, batch_first=True), nn.Linear(UNITS, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0][:, -1])


def input_sum(t: int) -> Callable[..., Tensor]:
    return lambda p: p["x"][:, t] @ p["lstm.weight_ih_l0"].T + p["lstm.bias_ih_l0"]


def recurrent_sum(p: Tensors, hidden: Tensor) -> Tensor:
    return hidden @ p["lstm.weight_hh_l0"].T + p["lstm.bias_hh_l0"]


def first_gates(p: Tensors, from_input: Tensor) -> Tensor:
    return from_input + recurrent_sum(p, p["x"].new_zeros(len(p["x"]), UNITS))


def part(index: int, function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """One of the four gates."""
    return lambda _, gates: function(gates[:, index * UNITS : (index + 1) * UNITS])


def product(_: Tensors, first: Tensor, second: Tensor) -> Tensor:
    return first * second


def plus(_: Tensors, first: Tensor, second: Tensor) -> Tensor:
    return first + second


def time_step(t: int) -> list[Vertex]:
    now = lambda name: f"{name}@{t}"  # noqa: E731
    before = lambda name: f"{name}@{t - 1}"  # noqa: E731
    if t == 0:
        gates = [Vertex(now("gates"), (now("input"),), first_gates)]
        kept = Vertex(now("kept"), (now("forget"),), lambda _, forget: forget * torch.zeros_like(forget))
    else:
        gates = [
            Vertex(now("recurrent"), (before("hidden"),), recurrent_sum),
            Vertex(now("gates"), (now("recurrent"), now("input")), plus),
        ]
        kept = Vertex(now("kept"), (now("forget"), before("cell")), product)
    return [
        Vertex(now("input"), (), input_sum(t)),
        *gates,
        Vertex(now("in"), (now("gates"),), part(0, torch.sigmoid)),
        Vertex(now("forget"), (now("gates"),), part(1, torch.sigmoid)),
        Vertex(now("candidate"), (now("gates"),), part(2, torch.tanh)),
        Vertex(now("out"), (now("gates"),), part(3, torch.sigmoid)),
        kept,
        Vertex(now("written"), (now("in"), now("candidate")), product),
        Vertex(now("cell"), (now("kept"), now("written")), plus),
        Vertex(now("squashed"), (now("cell"),), lambda _, cell: torch.tanh(cell)),
        Vertex(now("hidden"), (now("out"), now("squashed")), product),
    ]


HEAD = Vertex("fc", (f"hidden@{STEPS - 1}",), lambda p, hidden: hidden @ p["fc.weight"].T + p["fc.bias"])
GRAPH = Graph((*(vertex for t in range(STEPS) for vertex in time_step(t)), HEAD), ("fc",))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return Last().double()


@pytest.fixture(scope="module")
def opened(model: nn.Module) -> pccompile.PCModule:
    """The model compiled once; the tests change the scalars of its rule."""
    return pccompile.compile(copy.deepcopy(model), pccompile.Strict(), F.cross_entropy)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, STEPS, WIDTH, dtype=torch.float64), torch.randint(4, (BATCH,))


def test_the_hand_written_lstm_is_the_models(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, _ = batch
    values = feed_forward(GRAPH, clamped_tensors(model, x))
    assert relative_error(values["fc"], model(x).detach()) < 1e-14


@pytest.mark.parametrize(("steps", "step_size"), [(1, 0.1), (2, 0.3), (6, 0.2), (30, 0.1)])
def test_strict_inference_inside_an_lstm_equals_the_equations(
    model: nn.Module,
    opened: pccompile.PCModule,
    gradients: Gradients,
    batch: tuple[Tensor, Tensor],
    steps: int,
    step_size: float,
) -> None:
    x, y = batch
    clamped = clamped_tensors(model, x)
    reference = strict(GRAPH, clamped, lambda mu: F.cross_entropy(mu, y), steps, step_size, scale=float(BATCH))
    opened.rule, opened.record_energies = pccompile.Strict(steps, step_size), True
    assert worst(gradients(opened, x, y), reference.gradients) < 1e-12
    assert opened.energies == pytest.approx(reference.energies[: len(opened.energies)], rel=1e-12)


@pytest.mark.parametrize("levelled", [True, False], ids=["levelled", "as it is"])
@pytest.mark.parametrize(("steps", "step_size"), [(4, 0.5), (25, 1.0), (40, 0.4)])
def test_fixed_prediction_inside_an_lstm_equals_the_equations(
    model: nn.Module,
    opened: pccompile.PCModule,
    gradients: Gradients,
    batch: tuple[Tensor, Tensor],
    steps: int,
    step_size: float,
    levelled: bool,
) -> None:
    x, y = batch
    graph = GRAPH.levelled() if levelled else GRAPH
    expected = fixed_prediction(graph, clamped_tensors(model, x), lambda mu: F.cross_entropy(mu, y), steps, step_size)
    opened.rule = pccompile.FixedPrediction(steps, step_size, levelled)
    assert worst(gradients(opened, x, y), expected) < 1e-12


def test_inference_inside_the_lstm_is_not_inference_around_it(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    found = []
    for decompose in (True, False):
        pc = pccompile.compile(model, pccompile.Strict(6, 0.2), F.cross_entropy, decompose=decompose)
        found.append(torch.autograd.grad(pc.loss(x, y), model.lstm.weight_hh_l0)[0])
    assert relative_error(*found) > 1e-3
