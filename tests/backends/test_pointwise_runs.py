"""Which runs of elementwise operators become one launch, and what that takes and gives."""

import pytest
import torch
import torch.nn.functional as F
from test_triton import graphs
from torch import nn

import pccompile
from pccompile.backends.report import rows_of

LEVELLED = pccompile.FixedPrediction(steps=5, step_size=0.3, levelled=True)


class Between(nn.Module):
    """Elementwise functions of a linear layer's output, a row and a number, all learned, between linear layers."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(6, 8), nn.Linear(8, 3), function
        self.row, self.one = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(1))

    def forward(self, x):
        return self.b(self.function(self.a(x), self.row, self.one))


class Gated(nn.Module):
    """silu(x W1) * (x W2) * scale + shift."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale, self.shift = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x):
        return self.c(F.silu(self.a(x)) * self.b(x) * self.scale + self.shift)


def runs(found, name):
    """The runs in a graph: what their calls give, as shapes, and the vertices they cover."""
    graph, chosen = found[name]
    taken = [row.vertices for row in chosen if row.kernel == "pointwise"]
    given = [
        [tuple(kind.shape) for kind in node.meta["val"]]
        for node in graph.nodes
        if node.meta.get("kernel") == "pointwise" and isinstance(node.meta["val"], tuple)
    ]
    return given, taken


def left(found, name):
    """Vertices with launches of operators, without the loss."""
    rows = rows_of(found[name][0], "aten", "no kernel takes them")
    return [row.vertices for row in rows if row.launches and row.vertices != ("loss",)]


def arguments(found, name):
    """The names of the numbers that runs read."""
    calls = [node for node in found[name][0].nodes if getattr(node.target, "__name__", "") == "run_pointwise"]
    return [[read.name for read in node.all_input_nodes if isinstance(read.meta["val"], float)] for node in calls]


def test_a_gated_block_is_one_launch_forward_with_what_its_errors_read_and_one_back_with_its_sums():
    found = graphs(Gated())
    assert runs(found, "prediction_sweep") == ([[(5, 8), (5, 8)]], [("mul", "mul_1", "add")])
    given, taken = runs(found, "error_sweep")
    assert sorted(given[0]) == [(1, 8), (1, 8), (5, 8), (5, 8)]  # sums for scale and shift, errors of both layers
    assert [set(vertices) for vertices in taken] == [{"mul", "mul_1", "add"}]
    assert not left(found, "prediction_sweep") and not left(found, "error_sweep")


def test_gains_of_sums_are_arguments_of_the_launch():
    found = graphs(Gated(), LEVELLED)
    assert len(runs(found, "error_sweep")[0]) == 1
    ((*gains,),) = arguments(found, "error_sweep")
    assert len(gains) == 2 and all(name.startswith("gain") for name in gains)
    assert not left(found, "error_sweep")


def test_all_elementwise_vertices_of_a_strict_step_are_one_launch_that_takes_the_step_size():
    found = graphs(Gated(), pccompile.Strict(steps=5, step_size=0.1))
    assert runs(found, "error_sweep_2")[0] == [[(5, 8)] * 3]  # the values that moved
    assert arguments(found, "error_sweep_2") == [["step_size"]]
    assert not left(found, "error_sweep_2")


FUNCTIONS = {
    "comparisons": lambda z, row, one: torch.where(z > 0, z * row, z * one),
    "bounds": lambda z, row, one: torch.clamp(z * row, -0.5, 0.5) * one,
    "choices": lambda z, row, one: z.abs() * row + torch.maximum(z, row) * one,
    "casts": lambda z, row, one: ((z * row).to(torch.bfloat16) * 2).float() * one,
    "activations": lambda z, row, one: F.mish(z) * row + F.hardswish(z) * one,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_elementwise_cuts_a_run(name):
    found = graphs(Between(FUNCTIONS[name]))
    assert [len(runs(found, sweep)[0]) for sweep in ("prediction_sweep", "error_sweep")] == [1, 1]


def test_sums_over_more_dimensions_go_on_from_those_over_fewer():
    found = graphs(Between(lambda z, row, one: torch.tanh(z * row) * one))
    (given,), _ = runs(found, "error_sweep")
    assert sorted(given) == [(1, 8), (1, 8), (5, 8)]
    totals = [node for node in found["error_sweep"][0].nodes if node.target is torch.ops.aten.sum.dim_IntList]
    assert [tuple(node.args[0].meta["val"].shape) for node in totals] == [(1, 8)]


def test_what_reads_a_sum_is_in_no_launch_with_it():
    found = graphs(Between(lambda z, row, one: z * row / (z * one).exp().sum(1, keepdim=True)))
    assert runs(found, "prediction_sweep")[0] == [[(5, 8), (5, 1)], [(5, 8), (5, 8)]]


def test_smaller_operators_that_a_run_alone_reads_are_part_of_it():
    found = graphs(Between(lambda z, row, one: torch.tanh(z * one + 2 * (row + 1))))
    assert runs(found, "prediction_sweep")[1] == [("mul", "add", "mul_1", "add_1", "tanh")]


def test_a_lone_operator_stays_one():
    found = graphs(Between(lambda z, row, one: z.cumsum(1) * row))
    assert runs(found, "prediction_sweep") == ([], [])


def test_runs_end_where_a_launch_would_hold_too_much():
    def many(z, row, one):
        parts = [torch.sin(z * (k + 1)) for k in range(20)]
        return torch.stack(parts).sum(0) * row

    graph, _ = graphs(Between(many))["prediction_sweep"]
    calls = [node for node in graph.nodes if getattr(node.target, "__name__", "") == "run_pointwise"]
    assert len(calls) > 1
    assert all(len(node.all_input_nodes) + len(node.meta["val"]) <= 16 for node in calls)
