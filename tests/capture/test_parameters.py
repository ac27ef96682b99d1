"""Parameters and buffers: tied, replaced, parametrised, lazily made, shared with the loss, outside the model."""

import copy
import re

import pytest
import torch
import torch.nn.utils as utils
from agreement import Net, agree, batch, refused
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import pccompile
from pccompile.errors import ReplayError


def tanh(net, hidden):
    return torch.tanh(hidden)


def tied():
    model = Net(tanh)
    model.out.weight = model.fc.weight
    return model


def test_tied_weights_may_be_untied_and_tied_again():
    def before(model, number):
        model.out.weight = model.fc.weight if number == 2 else nn.Parameter(torch.full((3, 3), 0.1 * number))

    agree(tied, *[batch()] * 3, before=lambda model, number: number and before(model, number))


def test_parameters_tied_at_one_call_and_only_equal_at_the_next_are_told_apart():
    """The numbers, kinds and values of the parameters are the same in both calls; their ties are not."""

    def make():
        model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
        model.forward = lambda x: model["c"](model["b"](model["a"](x)).tanh())
        model["b"].weight = model["a"].weight
        return model

    def before(model, number):
        if number == 1:
            model["b"].weight = model["c"].weight

    agree(make, *[batch()] * 2, before=before)


REPLACED = {
    "by a parameter": lambda model, number: setattr(
        model.out, "weight", nn.Parameter(torch.full((3, 3), number + 0.1))
    ),
    "by load_state_dict": lambda model, number: model.load_state_dict(
        {name: value * 1.5 for name, value in model.state_dict().items()}, assign=True
    ),
    "by requires_grad": lambda model, number: model.fc.requires_grad_(number != 1),
}


@pytest.mark.parametrize("before", REPLACED.values(), ids=REPLACED)
def test_parameters_may_be_replaced_after_compiling(before):
    agree(lambda: Net(tanh), *[batch()] * 3, before=before)


def test_the_dtype_may_change_after_compiling():
    x = batch()
    before = lambda model, number: model.double() if number == 1 else model.float()  # noqa: E731
    agree(lambda: Net(tanh), x, x.double(), x, before=before)


def test_a_forward_may_ask_whether_a_parameter_is_trained():
    between = lambda net, hidden: hidden * (2 if net.fc.weight.requires_grad else 3)  # noqa: E731
    agree(lambda: Net(between), *[batch()] * 3, before=lambda m, number: m.fc.weight.requires_grad_(number != 1))


PARAMETRISED = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm by hooks": utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm by hooks": utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("apply", PARAMETRISED.values(), ids=PARAMETRISED)
def test_parametrised_weights_learn_and_their_buffers_move(apply):
    def make():
        model = Net(tanh)
        apply(model.fc)
        return model

    agree(make, *[batch()] * 2)


def test_a_cached_parametrisation_is_computed_once_a_forward():
    def between(net, hidden):
        with parametrize.cached():
            return net.fc(net.fc(hidden))

    def make():
        model = Net(between)
        parametrizations.weight_norm(model.fc)
        return model

    agree(make, *[batch()] * 2)


def test_lazy_modules_are_initialised_at_the_first_call_as_in_eager_mode():
    def make():
        return nn.Sequential(nn.LazyConv1d(5, 1), nn.LazyBatchNorm1d(), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(3))

    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(make())
    ours, theirs = models
    pc, x = pccompile.compile(ours, dynamic=False), batch(4, 2, 3)
    torch.manual_seed(1)
    pc(x)
    assert ours[1].num_batches_tracked == 1 and type(ours[4]) is nn.Linear
    torch.manual_seed(1)
    theirs(x)
    assert torch.equal(ours[0].weight, theirs[0].weight)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for call in (pc, theirs):
        torch.manual_seed(2)
        results.append(call(x))
    assert torch.equal(*results)


def test_a_lazy_batch_norm_starts_from_fresh_statistics():
    model = nn.Sequential(nn.Linear(3, 3), nn.LazyBatchNorm1d())
    pccompile.compile(model, dynamic=False).prepare(batch())
    assert model[1].num_batches_tracked == 0 and not model[1].running_mean.any()


# Buffers --------------------------------------------------------------------------------------------------------------


def moves_a_buffer(net, hidden):
    net.mean = 0.9 * net.mean + 0.1 * hidden.detach().mean(0)  # a new tensor under the buffer's name
    return hidden - net.mean


def grows_a_buffer(net, hidden):
    net.mean = torch.cat([net.mean, net.mean])
    return hidden


def with_buffer(between):
    model = Net(between)
    model.register_buffer("mean", torch.zeros(3))
    return model


def test_a_buffer_that_the_forward_replaces_is_written_into():
    agree(lambda: with_buffer(moves_a_buffer), *[batch()] * 3)


def test_a_buffer_that_the_forward_grows_is_refused():
    refused(with_buffer(grows_a_buffer), batch(), match=r"replaces the buffer mean .*3\) -> .*6\)")


def test_a_plain_tensor_that_the_forward_replaces_is_refused():
    model = Net(moves_a_buffer, mean=torch.zeros(3))
    refused(model, batch(), match="the attribute mean", line="net.mean = 0.9")


# Tensors that are not registered --------------------------------------------------------------------------------------


def test_plain_tensors_that_are_trained_get_their_gradient():
    scale, inner = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    model, x = Net(lambda net, hidden: hidden * scale * net.scales[0], scales=[inner]), batch()
    pccompile.compile(model, dynamic=False)(x).sin().sum().backward()
    ours = [scale.grad.clone(), inner.grad.clone()]
    scale.grad = inner.grad = None
    model(x).sin().sum().backward()
    assert torch.equal(ours[0], scale.grad) and torch.equal(ours[1], inner.grad)


UNREGISTERED = {
    "a parameter in a list": (lambda n, h: h * n.hidden[0], lambda m: [nn.Parameter(torch.randn(3))], "no parameter"),
    "a module in a list": (lambda n, h: n.hidden[0](h), lambda m: [nn.Linear(3, 3)], "no parameter"),
    "another name of a parameter": (lambda n, h: h @ n.hidden[0], lambda m: [m.fc.weight], r"fc\.weight"),
}


@pytest.mark.parametrize(("between", "hide", "name"), UNREGISTERED.values(), ids=UNREGISTERED)
def test_parameters_that_the_model_hides_are_refused_by_the_replay(between, hide, name):
    model = Net(between)
    model.hidden = hide(model)
    message = f"(?s)the gradient of .*{name}"
    with pytest.raises(ReplayError, match=message):
        pccompile.compile(model, dynamic=False)(batch())


# The loss -------------------------------------------------------------------------------------------------------------


class Weighted(nn.Module):
    """A loss with a parameter of its own that reads one of the model's as well."""

    def __init__(self, shared):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.shared = shared

    def forward(self, outputs, target):
        return ((outputs - target) @ self.shared).square().mean() * self.scale


def test_parameters_may_be_shared_by_the_model_and_its_loss():
    model = Net(tanh)
    loss_fn, x, y = Weighted(model.fc.weight), batch(), batch()
    pccompile.compile(model, loss_fn=loss_fn, dynamic=False).loss(x, y).backward()
    parameters = [*model.parameters(), loss_fn.scale]
    ours = [parameter.grad.clone() for parameter in parameters]
    theirs = torch.autograd.grad(loss_fn(model(x), y), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_the_losss_own_parameters_may_be_frozen_and_its_attributes_changed_after_compiling():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.factor = nn.Parameter(torch.tensor(2.0)), 1.0

        def forward(self, outputs, target):
            return (outputs - target).square().mean() * self.scale * self.factor

    model, loss_fn, x, y = Net(tanh), Scaled(), batch(), batch()
    pc = pccompile.compile(model, loss_fn=loss_fn, dynamic=False)
    for frozen, factor in ((False, 1.0), (True, 1.0), (False, 3.0)):
        loss_fn.scale.requires_grad_(not frozen)
        loss_fn.factor, loss_fn.scale.grad = factor, None
        loss = pc.loss(x, y)
        loss.backward()
        assert (loss_fn.scale.grad is None) == frozen
        assert torch.equal(loss, loss_fn(model(x), y))


def test_a_loss_that_changes_python_state_is_refused():
    history = []

    def loss_fn(outputs, target):
        history.append(1)
        return (outputs - target).square().mean()

    model, target = Net(tanh), batch()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(pccompile.PCCompileError, match=re.escape("the enclosing variable history[0]")):
        pccompile.compile(model, loss_fn=loss_fn).loss(batch(), target)
    assert history == [] and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
