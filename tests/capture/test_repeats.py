"""Copies of a repeated block are what tracing every block makes; what cannot be copied is traced."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile
from pccompile.capture import exported as exported_module
from pccompile.capture.exported import WithLoss, _aliases, _module_of, _traced
from pccompile.capture.repeats import Repeats
from pccompile.capture.shapes import domain_of_export, open_dimensions


class Block(nn.Module):
    def __init__(self, width=8, slope=0.1):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 12), nn.Linear(12, width)
        self.act, self.slope = nn.ReLU(), slope

    def forward(self, x, scale=1.0, mask=None):
        hidden = F.leaky_relu(self.up(self.act(self.norm(x))), self.slope)
        hidden = F.dropout(self.act(hidden), 0.25, self.training)
        if mask is not None:
            hidden = hidden * mask
        return x + scale * self.down(hidden).view(x.shape[0], -1)


class Stack(nn.Module):
    """Four equal blocks, one of another kind, the second once more, and blocks that get other arguments."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(4)])
        self.other, self.last = Block(slope=0.3), nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        x = self.blocks[1](self.other(x))
        x = self.last[1](self.last[0](x, 0.5), mask=x.sum(1, keepdim=True))
        return self.head(x)


class Tied(Stack):
    def __init__(self):
        super().__init__()
        self.blocks[2].down.weight = self.blocks[0].down.weight
        self.alias = self.blocks[3].up


class Pairs(nn.Module):
    """Blocks take and return structures, and return an argument."""

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

        def forward(self, state):
            hidden, memory, count = state["hidden"], state["memory"], state["count"]
            return {"hidden": self.linear(hidden) + memory, "memory": memory, "count": count}

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList([self.Step() for _ in range(3)])

    def forward(self, x):
        state = {"hidden": x, "memory": x * 2, "count": 0}
        for step in self.steps:
            state = step(state)
        return state["hidden"] + state["count"]


def both(model, x):
    """The program with copies and without, with the number of copies."""
    module, repeated = WithLoss(model, None), []

    class Noted(Repeats):
        def write_out(self, exported):
            super().write_out(exported)
            repeated.append(len(self._copies))

    inputs = _aliases(((x,), {}, ()))
    shapes = open_dimensions(inputs)
    programs = []
    for repeats in (Noted, Noted.__mro__[1]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exported_module, "Repeats", repeats)
            if not programs:
                programs.append(_traced(module, inputs, shapes))
            else:
                patch.setattr("pccompile.capture.repeats._equal_blocks", lambda model: [])
                programs.append(_traced(module, inputs, shapes))
    return *programs, sum(repeated)


def as_text(program):
    """Every node with what it reads, where it belongs and what it yields, numbered in order."""
    number = {node: position for position, node in enumerate(program.graph.nodes)}
    rows = []
    for node in program.graph.nodes:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{number[n]}")
        stack = node.meta.get("stack_trace", "").splitlines()[-1:]
        kind = str(node.meta.get("val"))
        name = node.name if node.op == "placeholder" else ""
        rows.append((node.op, name, str(node.target), str(args), str(kwargs), _module_of(node), kind, stack))
    placeholders = program.graph.find_nodes(op="placeholder")
    return rows, domain_of_export(placeholders, program, "")


@pytest.mark.parametrize("kind, copies", [(Stack, 3), (Tied, 3), (Pairs, 1)])
def test_copies_are_what_tracing_makes(kind, copies):
    copied, traced, count = both(kind(), torch.randn(5, 8))
    assert count == copies
    ours, theirs = as_text(copied), as_text(traced)
    targets = [row[2] for row in theirs[0] if row[0] == "placeholder"]
    assert targets == [row[2] for row in ours[0] if row[0] == "placeholder"]
    assert [row[1:] for row in ours[0] if row[0] != "placeholder"] == [
        row[1:] for row in theirs[0] if row[0] != "placeholder"
    ]
    assert ours[1] == theirs[1]


@pytest.mark.parametrize("kind", [Stack, Tied, Pairs])
def test_gradients_are_those_of_autograd(kind):
    torch.manual_seed(0)
    model = kind().double().eval()
    x, y = torch.randn(5, 8, dtype=torch.float64), torch.randint(0, 3, (5,))
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    pc = pccompile.compile(model, loss_fn=F.cross_entropy, verify=False)
    found = torch.autograd.grad(pc.loss(x, y), list(model.parameters()))
    assert all(map(torch.equal, found, expected))


class Counting(Block):
    """Writes into its own buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Writing(Block):
    """Writes into its argument."""

    def forward(self, x):
        x[:, 0] = 0.0
        return super().forward(x)


class Selecting(Block):
    """Has a size that its values tell."""

    def forward(self, x):
        return super().forward(x) + self.up(x[x[:, 0] > 0]).sum()


class Numbered(Block):
    """Depends on its place."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def forward(self, x):
        return super().forward(x) * self.place


@pytest.mark.parametrize(
    "blocks",
    [
        [Counting(), Counting()],
        [Writing(), Writing()],
        [Selecting(), Selecting()],
        [Numbered(1), Numbered(2)],
        [Block(), Block().requires_grad_(False)],
        [Block(), Block().double().float().eval()],
    ],
    ids=["buffer", "argument", "sizes", "attribute", "frozen", "mode"],
)
def test_what_cannot_be_copied_is_traced(blocks):
    model = nn.Sequential(nn.Linear(8, 8), *blocks)
    pc = pccompile.compile(model)
    x = torch.randn(5, 8)
    pc(x).sum().backward()  # the first call is compared with the model's own forward, gradients included
    assert not any("pccompile_capture" in str(node.target) for node in captured_nodes(pc))


def captured_nodes(pc):
    return list(pc._latest.captured.graph.nodes)


def test_hooks_are_followed():
    model = nn.Sequential(Block(), Block())
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    pc = pccompile.compile(model)
    x = torch.randn(5, 8)
    assert torch.equal(pc.eval()(x), model(x))


def test_the_model_is_left_as_it_was():
    model = Stack()
    pccompile.compile(model)(torch.randn(5, 8)).sum().backward()
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_vertices_are_named_by_the_block_that_was_called():
    pc = pccompile.compile(Stack().eval())
    pc(torch.randn(5, 8)).sum().backward()
    names = {vertex.name for vertex in pc.program.vertices}
    assert {"blocks.3.up", "blocks.1.up@1", "other.up", "last.1.down"} <= names
    acts = [node for node in captured_nodes(pc) if node.target in (torch.ops.aten.relu.default, operator.mul)]
    modules = [pc._latest.captured.modules[node.name][0] for node in acts]
    assert modules.count("blocks.1.act") == 1 and "blocks.1.act@3" in modules
