"""Every error names module, node and source line, its cause and a cure, and leaves the model as it was."""

import contextlib
import copy
import dataclasses

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from models import mlp
from torch import nn

import pccompile
from pccompile import errors
from pccompile.ir import verify


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        hidden = self.norm(x)
        if hidden.sum() > 0:  # the branch
            return hidden
        return -hidden


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x)  # three features, not four


class Misshapen(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.inner = nn.BatchNorm1d(3), Inner()

    def forward(self, x):
        return self.inner(self.norm(x))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        hidden = self.norm(x)
        return hidden + torch.from_numpy(hidden.detach().numpy())  # leaves torch


class Underivable(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return torch.heaviside(self.norm(x), torch.ones(()))  # a step function


class UnderivableLate(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return torch.special.zeta(self.norm(x).abs() + 2, self.norm(x).abs() + 2).sum(1)  # no derivative in the first


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 100  # on purpose not the derivative


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return Doubled.apply(self.norm(x))  # a custom backward


@contextlib.contextmanager
def unchanged(model):
    before = copy.deepcopy(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()], model.training
    random = torch.get_rng_state()
    yield
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == ([p.requires_grad for p in model.parameters()], model.training)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert not nn.modules.module._global_forward_pre_hooks
    assert not nn.modules.module._global_forward_hooks


def told(error):
    text = str(error.value)
    for label in ("module:", "node:", "source:", "cause:", "cure:"):
        assert label in text, text
    return text


CASES = [
    (Branching, errors.DataDependentError, "if hidden.sum() > 0:  # the branch"),
    (Misshapen, errors.ShapeError, "return self.fc(x)  # three features, not four"),
    (Untraceable, errors.CaptureError, "# leaves torch"),
    (Underivable, errors.NoDerivativeError, "# a step function"),
    (Custom, errors.CaptureError, "# a custom backward"),
]


@pytest.mark.parametrize("capture", ["export", "symbolic"])
@pytest.mark.parametrize(("kind", "error", "line"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_a_model_that_cannot_be_compiled_is_refused_with_its_source_line(kind, error, line, capture):
    model = kind()
    inputs = torch.randn(2, 3)
    with unchanged(model), pytest.raises(error) as raised:
        pccompile.compile(model, capture=capture, example_inputs=inputs)
    text = told(raised)
    assert line in text
    assert "test_errors.py" in text


def test_the_failing_submodule_is_named():
    with pytest.raises(errors.ShapeError, match=r"inner\.fc") as raised:
        pccompile.compile(Misshapen(), example_inputs=torch.randn(2, 3))
    assert "aten" in raised.value.place.node


def test_a_derivative_that_is_missing_only_at_run_time_is_named_too():
    model = UnderivableLate()
    pc = pccompile.compile(model)
    outputs = pc(torch.randn(2, 3))
    with pytest.raises(errors.NoDerivativeError) as raised:
        outputs.sum().backward()
    assert "no derivative in the first" in told(raised)
    assert all(p.grad is None for p in model.parameters())


def test_an_underivable_operator_on_a_frozen_branch_is_no_error():
    model = Underivable().requires_grad_(False)
    assert not pccompile.compile(model)(torch.randn(2, 3)).requires_grad


def test_a_shape_that_does_not_fit_a_captured_graph_module_is_named():
    model, inputs = torch.fx.symbolic_trace(Misshapen()), torch.randn(2, 3)
    with unchanged(model), pytest.raises(errors.ShapeError) as raised:
        pccompile.compile(model, example_inputs=inputs)
    assert "inner.fc" in str(raised.value)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.third(self.second(self.first(x)))


def test_inference_that_diverges_names_a_vertex_that_is_not_finite():
    model = Stack()
    with torch.no_grad():
        model.second.weight.mul_(100)
    pc = pccompile.compile(model, pccompile.Strict(steps=200, step_size=1.0), loss_fn=F.mse_loss)
    loss = pc.loss(torch.randn(4, 3) * 1e3, torch.randn(4, 3))
    with unchanged(model), pytest.raises(errors.NonFiniteError, match="step_size") as raised:
        loss.backward()
    assert "self.third(self.second(self.first(x)))" in told(raised)


def test_a_nan_in_the_input_is_found_where_it_enters():
    pc = pccompile.compile(Stack(), pccompile.Strict(steps=2), loss_fn=F.mse_loss)
    with pytest.raises(errors.NonFiniteError, match=r"module:  first|the value of x"):
        pc.loss(torch.full((4, 3), float("nan")), torch.randn(4, 3)).backward()


def test_zil_lets_infinities_pass_as_autograd_does_because_loss_scalers_need_them():
    model = mlp()
    pc = pccompile.compile(model, loss_fn=F.cross_entropy)
    (pc.loss(torch.randn(6, 4), torch.randint(5, (6,))) * float("inf")).backward()
    assert not torch.isfinite(model[0].weight.grad).all()


def program():
    model = Stack()
    return pccompile.compile(model, example_inputs=torch.randn(2, 3)).program


def changed(program, vertex=None, edge=None):
    graph = nx.DiGraph(program.graph)
    if vertex is not None:
        graph.add_node(vertex.name, vertex=vertex)
    if edge is not None:
        graph.add_edge(*edge, reads=tuple(part.node for part in program.vertex(edge[0]).components))
    return dataclasses.replace(program, graph=graph)


def test_a_cycle_is_refused_and_its_vertices_named():
    with pytest.raises(errors.CycleError, match=r"first -> second|second -> first") as raised:
        verify(changed(program(), edge=("second", "first")))
    assert "self.third(self.second(self.first(x)))" in told(raised)


def test_a_delay_of_another_shape_is_refused():
    broken = program()
    second = broken.vertex("second")
    parts = tuple(dataclasses.replace(part, shape=(2, 9)) for part in second.components)
    kind = type(second.kind)("delay")
    delay = dataclasses.replace(second, kind=kind, nodes=(), components=parts)
    graph = nx.DiGraph(broken.graph)
    graph.nodes["second"]["vertex"] = delay
    node = broken.vertex("first").components[0].node
    graph.nodes["second"]["vertex"] = dataclasses.replace(delay, components=(dataclasses.replace(parts[0], node=node),))
    graph.remove_edges_from([(parent.name, "second") for parent in broken.parents("second") if parent.clamped])
    graph.remove_edge("second", "third")
    with pytest.raises(errors.ShapeError, match="second repeats first"):
        verify(dataclasses.replace(broken, graph=graph))


def test_errors_are_runtime_errors_and_carry_their_parts():
    error = errors.ShapeError("why", errors.Place("layer", "node", "file.py:1 in forward"))
    assert isinstance(error, errors.PCCompileError) and isinstance(error, RuntimeError)
    assert (error.cause, error.place.module, error.cure) == ("why", "layer", errors.ShapeError.cure)


def test_a_custom_autograd_function_is_refused_by_name_and_left_as_it_was():
    original = torch.autograd.Function.__dict__["apply"]
    for capture in ("export", "symbolic"):
        with pytest.raises(errors.CaptureError, match=r"Doubled.*\n.*custom_op"):
            pccompile.compile(Custom(), capture=capture, example_inputs=torch.randn(2, 3))
    assert torch.autograd.Function.__dict__["apply"] is original
