"""Graphs are cut where they repeat themselves; equal parts have equal signatures, and together they are the graph."""

import operator

import pytest
import torch
from torch import fx, nn

import pccompile
from pccompile.lowering.regions import regions, signature, tandem_repeat


@pytest.mark.parametrize(
    "text, expected",
    [
        ("abcabcabcabc", (0, 3, 4)),
        ("xyabcabcabcz", (2, 3, 3)),
        ("aaaa", (0, 1, 4)),
        ("abacabacabacabac", (0, 4, 4)),
        ("abcdefg", None),
        ("", None),
    ],
)
def test_the_longest_stretch_that_repeats_itself_is_found(text, expected):
    assert tandem_repeat(text) == expected


class Stack(nn.Module):
    def __init__(self, blocks, width=8):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(blocks)
        )
        self.last = nn.Linear(width, 3)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def flat_graphs(model, x):
    pc = pccompile.compile(model, backend="aten", dynamic=False, verify=False)
    pc(x).sum().backward()
    (plan,) = pc._latest.backend.plans.values()
    (sweep,) = plan.sweeps.values()
    return [plan.prediction.piece.graph, *(stage.piece.graph for stage in sweep.stages)]


def test_the_blocks_of_a_deep_model_are_few_distinct_parts():
    distinct = {}
    for depth in (12, 24):
        torch.manual_seed(0)
        for name, graph in zip(("forward", "back"), flat_graphs(Stack(depth), torch.randn(4, 5)), strict=True):
            parts = regions(graph)
            assert len(parts) >= depth / 4
            distinct.setdefault(name, []).append({part.signature for part in parts})
    for shallow, deep in distinct.values():
        assert len(deep) <= 4
        assert len(deep - shallow) <= 1  # what is left over after the last whole block


def test_the_parts_one_after_another_compute_the_whole():
    torch.manual_seed(0)
    graph, *_ = flat_graphs(Stack(12), torch.randn(4, 5))
    inputs = [torch.randn(node.meta["val"].shape) for node in graph.find_nodes(op="placeholder")]
    values = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=True))
    for part in regions(graph):
        found = fx.GraphModule({}, part.graph)(*(values[node] for node in part.inputs))
        values.update(zip(part.outputs, found, strict=True))
    expected = fx.GraphModule({}, graph)(list(inputs))
    for node, whole in zip(graph.output_node().args[0], expected, strict=True):
        assert torch.equal(values[node], whole)


def graph_of(function, *shapes):
    graph = fx.Graph()
    nodes = []
    for position, shape in enumerate(shapes):
        nodes.append(graph.placeholder(f"x{position}"))
        nodes[-1].meta["val"] = torch.empty(shape)
    graph.output((function(graph, *nodes),))
    return graph


def test_signatures_tell_operators_constants_wiring_and_kinds_apart():
    def of(target, *shapes, swapped=False, **kwargs):
        def build(graph, a, b):
            return graph.call_function(target, (b, a) if swapped else (a, b), kwargs)

        return signature(graph_of(build, *shapes))

    base = of(torch.add, (2, 3), (2, 3))
    assert base == of(torch.add, (2, 3), (2, 3))
    others = [
        of(torch.sub, (2, 3), (2, 3)),
        of(torch.add, (2, 3), (2, 3), alpha=2),
        of(torch.add, (2, 3), (2, 3), swapped=True),
        of(torch.add, (2, 3), (2, 1)),
        of(operator.add, (2, 3), (2, 3)),
    ]
    assert base not in others
    assert len(set(others)) == len(others)


def test_the_steps_of_an_opened_recurrence_are_few_distinct_parts():
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, batch_first=True)
    rule = pccompile.FixedPrediction(levelled=True)
    pc = pccompile.compile(model, rule, lambda outputs, y: (outputs[0] - y).square().sum(), backend="aten")
    pc.loss(torch.randn(2, 24, 3), torch.randn(2, 24, 4)).backward()
    (plan,) = pc._latest.backend.plans.values()
    (sweep,) = plan.sweeps.values()
    for stage in (plan.prediction, *sweep.stages):
        parts = regions(stage.piece.graph)
        assert len(parts) > 8 and len({part.signature for part in parts}) <= 5
        assert sum(len(part.graph.find_nodes(op="placeholder")) for part in parts) < 40 * len(parts)
