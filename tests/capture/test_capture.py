"""What capture must get right: state, writes in place, containers, names and source lines."""

import copy

import pytest
import torch
import torch.nn.functional as F
from models import ResNet, UnrolledCell
from torch import fx, nn

import pccompile
from pccompile.errors import CaptureError
from pccompile.losses import averages_over_batch


class Everything(nn.Module):
    """Keyword arguments, a mask, an integer, nested outputs, a passed-through input, an unused parameter."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 6)
        self.register_buffer("offset", torch.randn(6))
        self.unused = nn.Parameter(torch.randn(3))
        self.frozen = nn.Parameter(torch.randn(6), requires_grad=False)

    def forward(self, x, scale=2, *, mask=None):
        hidden = torch.tanh(self.fc1(x)) * scale + self.offset + self.frozen
        if mask is not None:
            hidden = hidden.masked_fill(mask, 0.0)
        top = hidden.argmax(1)
        return {"pair": (self.fc2(hidden), hidden), "top": top, "x": x, "none": None, "number": 3}


def equal(left, right):
    flat_left, spec_left = torch.utils._pytree.tree_flatten(left)
    flat_right, spec_right = torch.utils._pytree.tree_flatten(right)
    same = [
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(flat_left, flat_right, strict=True)
    ]
    return spec_left == spec_right and all(same)


def gradients(outputs, model):
    loss = outputs["pair"][0].square().mean() + outputs["pair"][1].sin().sum()
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)


@pytest.mark.parametrize("arguments", [{}, {"scale": 3}, {"mask": True}])
def test_keyword_arguments_nested_outputs_and_constants_come_through(arguments):
    model, x = Everything(), torch.randn(5, 4)
    if "mask" in arguments:
        arguments = {"mask": torch.rand(5, 6) > 0.5}
    pc = pccompile.compile(model)
    ours, theirs = pc(x, **arguments), model(x, **arguments)
    assert equal(ours, theirs)
    assert not ours["top"].requires_grad and ours["x"] is not None
    for a, b in zip(gradients(ours, model), gradients(theirs, model), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


class InPlace(nn.Module):
    def __init__(self, assigns):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("count", torch.zeros(()))
        self.assigns = assigns

    def forward(self, x):
        self.count.add_(1)
        hidden = self.fc1(x)
        hidden += 1
        hidden.mul_(2)
        if self.assigns:
            hidden[:, 0] = 0
        return self.fc2(F.leaky_relu(hidden, inplace=True)) + hidden.sum(1, keepdim=True)


@pytest.mark.parametrize("capture", ["export", "symbolic"])
def test_writes_in_place_mean_what_they_mean_in_eager_mode(capture):
    # torch.fx cannot trace an assignment to a slice symbolically
    model, x = InPlace(assigns=capture == "export"), torch.randn(5, 4)
    pc = pccompile.compile(model, capture=capture)
    for rule_output, expected in [(pc(x), copy.deepcopy(model)(x))]:
        assert torch.equal(rule_output, expected)
    parameters = [model.fc1.weight, model.fc1.bias, model.fc2.weight, model.fc2.bias]
    ours = torch.autograd.grad(pc(x).square().sum(), parameters)
    theirs = torch.autograd.grad(model(x).square().sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert model.count == 3


class WritesIntoView(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(self, x):
        hidden = self.fc(x)
        hidden[:, :2].mul_(3.0)
        return hidden.sum(1)


def test_a_write_into_a_view_is_followed_by_export_and_refused_by_symbolic():
    model, x = WritesIntoView(), torch.randn(5, 4)
    ours = torch.autograd.grad(pccompile.compile(model)(x).sum(), list(model.parameters()))
    theirs = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with pytest.raises(CaptureError, match="through another name"):
        pccompile.compile(model, capture="symbolic", example_inputs=x)


def test_a_graph_module_is_taken_as_it_is_and_its_buffers_move():
    model = fx.symbolic_trace(ResNet())
    twin = copy.deepcopy(model)
    x, y = torch.randn(6, 3, 8, 8), torch.randint(5, (6,))
    pc = pccompile.compile(model, loss_fn=F.cross_entropy)
    assert pccompile.check(pc, x, y).bit_equal
    pc.loss(x, y).backward()
    twin(x)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    operators = {vertex.operator for vertex in pc.program.vertices}
    assert {"Conv2d", "BatchNorm2d", "ReLU", "Linear"} <= operators  # modules, not ATen operators


class SharedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x):
        return self.norm(self.fc(self.norm(x)))


@pytest.mark.parametrize("capture", ["export", "symbolic"])
def test_a_module_called_twice_updates_its_buffers_twice(capture):
    model, x = SharedNorm(), torch.randn(6, 4)
    twin = copy.deepcopy(model)
    pc = pccompile.compile(model, capture=capture)
    ours = torch.autograd.grad(pc(x).sin().sum(), list(model.parameters()))
    theirs = torch.autograd.grad(twin(x).sin().sum(), list(twin.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


def test_vertices_are_named_by_module_path_and_carry_the_users_line():
    program = pccompile.compile(ResNet(), example_inputs=torch.randn(2, 3, 8, 8)).program
    conv = program.vertex("layer1.0.conv1")
    assert conv.operator == "conv2d.default"
    assert conv.source.startswith("models.py:") and "self.conv1(x)" in conv.source
    assert {"layer1.1.bn2", "layer1.0.relu", "layer1.0.relu@1", "fc", "stem.weight"} <= set(program.graph)


def test_each_call_of_a_cell_over_time_has_its_own_name():
    program = pccompile.compile(UnrolledCell(), example_inputs=torch.randn(2, 3, 3)).program
    assert {"cell", "cell@1", "cell@2"} <= set(program.graph)


class TwoArguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, image, text):
        return self.fc(image) + text


def test_inputs_have_the_names_of_the_forwards_arguments():
    program = pccompile.compile(TwoArguments(), example_inputs=(torch.randn(2, 3), torch.randn(2, 2))).program
    kinds = {vertex.name: vertex.kind.value for vertex in program.vertices}
    assert kinds["image"] == kinds["text"] == "input"
    program = pccompile.compile(TwoArguments(), example_inputs={"text": torch.randn(2, 2), "image": torch.randn(2, 3)})
    assert {"image", "text"} <= set(program.program.graph)


def test_a_container_of_tensors_is_flattened_by_export_and_refused_by_symbolic():
    class Container(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, pair):
            return self.fc(pair["a"]) * pair["b"]

    pair = {"a": torch.randn(2, 3), "b": torch.randn(2, 2)}
    model = Container()
    ours = torch.autograd.grad(pccompile.compile(model)(pair).sum(), list(model.parameters()))
    theirs = torch.autograd.grad(model(pair).sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with pytest.raises(CaptureError, match="container"):
        pccompile.compile(model, capture="symbolic", example_inputs=(pair,))


def test_a_loss_module_with_its_own_parameters_learns_too():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, outputs, target):
            return (outputs - target).square().mean() * self.scale

    model, loss_fn = nn.Linear(3, 2), Weighted()
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    pccompile.compile(model, loss_fn=loss_fn).loss(x, y).backward()
    ours = [p.grad.clone() for p in (model.weight, model.bias, loss_fn.scale)]
    theirs = torch.autograd.grad(loss_fn(model(x), y), [model.weight, model.bias, loss_fn.scale])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_mean_and_a_sum_over_the_batch_are_told_apart():
    outputs, target = torch.randn(6, 5), torch.randint(5, (6,))
    assert averages_over_batch(F.cross_entropy, outputs, (target,))
    assert not averages_over_batch(nn.CrossEntropyLoss(reduction="sum"), outputs, (target,))
    assert averages_over_batch(F.mse_loss, outputs, (torch.randn(6, 5),))
    assert averages_over_batch(lambda o, y: (o * 0).sum(), outputs, (target,))


class ReturnsItsParts(nn.Module):
    """Outputs that are no prediction: a parameter, an input, a frozen branch, a number without derivative."""

    def __init__(self):
        super().__init__()
        self.fc, self.frozen = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False)

    def forward(self, x):
        hidden = self.fc(x)
        return hidden, self.fc.weight, x, self.frozen(x), hidden.argmax(1).float()


@pytest.mark.parametrize("capture", ["export", "symbolic"])
def test_outputs_that_are_no_prediction_keep_their_gradients_and_get_none_they_do_not_have(capture):
    model, x = ReturnsItsParts(), torch.randn(4, 3)
    pc = pccompile.compile(model, capture=capture)
    ours, theirs = pc(x), model(x)
    assert equal(ours, theirs)
    assert [o.requires_grad for o in ours] == [o.requires_grad for o in theirs] == [True, True, False, False, False]
    losses = [outputs[0].sin().sum() + outputs[1].square().sum() for outputs in (ours, theirs)]
    found, expected = (torch.autograd.grad(loss, [model.fc.weight, model.fc.bias]) for loss in losses)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    wanted = x.clone().requires_grad_()
    pc(wanted)[2].sum().backward()
    assert torch.equal(wanted.grad, torch.ones_like(x))
