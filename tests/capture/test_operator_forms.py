"""Operators that capture has to look at twice: hidden writes, wrong functional forms, values known only at run time."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import exported_program

import pccompile
from pccompile.errors import CaptureError, DataDependentError, PCCompileError


class Calls(nn.Module):
    """A function of an input, as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def assert_trains_like_eager(model, x, capture="auto"):
    """Outputs, the input's and the parameters' gradients, and buffers equal eager's bit for bit."""
    twin = copy.deepcopy(model)
    results = []
    for module in (twin, pccompile.compile(model, capture=capture)):
        given = x.detach().clone().requires_grad_()
        torch.manual_seed(1)
        outputs = torch.utils._pytree.tree_leaves(module(given))
        torch.manual_seed(2)
        learned = [value for value in outputs if isinstance(value, torch.Tensor) and value.requires_grad]
        torch.autograd.backward(learned, [torch.randn_like(value) for value in learned])
        gradients = [given.grad, *(p.grad for p in module.parameters())]
        flags = [torch.tensor([isinstance(v, torch.Tensor) and v.requires_grad for v in outputs])]
        results.append([*outputs, *gradients, *module.buffers(), *flags])
    for expected, actual in zip(*results, strict=True):
        same = torch.equal(expected, actual) if isinstance(expected, torch.Tensor) else expected == actual
        assert same, (expected, actual)


def test_instance_norm_moves_its_running_statistics_once():
    model = nn.Sequential(nn.Linear(6, 6), nn.InstanceNorm1d(4, affine=True, track_running_stats=True))
    assert_trains_like_eager(model, torch.randn(3, 4, 6))
    assert not torch.equal(model[1].running_mean, torch.zeros(4))


def test_rrelu_in_place_differentiates_by_the_noise_it_drew():
    assert_trains_like_eager(nn.Sequential(nn.Linear(4, 4), nn.RReLU(inplace=True)), torch.randn(3, 4))


@pytest.mark.parametrize("activation", [nn.ELU, nn.CELU, nn.SELU, nn.LeakyReLU, nn.Hardtanh, nn.SiLU, nn.Threshold])
def test_an_activation_in_place_is_differentiated_as_eager_does(activation):
    arguments = (0.1, 0.5) if activation is nn.Threshold else ()
    model = nn.Sequential(nn.Linear(4, 4), activation(*arguments, inplace=True), nn.Linear(4, 2))
    assert_trains_like_eager(model, torch.randn(30, 4) * 5)


@pytest.mark.parametrize("capture", ["export", "symbolic"])
def test_a_model_may_end_in_dropout(capture):
    assert_trains_like_eager(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), torch.randn(3, 4), capture)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: F.soft_margin_loss(x * 2, torch.tensor([1.0, -1.0, 1.0])), (3,)),
        (lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3), training=False), (4, 3)),
    ],
)
def test_arguments_without_a_derivative_may_be_beside_arguments_with_one(function, shape):
    assert_trains_like_eager(Calls(function), torch.randn(shape))


class WithTarget(nn.Module):
    def forward(self, x, target):
        return F.soft_margin_loss(x, target)


def test_a_floating_point_input_that_wants_no_gradient_may_be_where_none_is_possible():
    x, target = torch.randn(3, requires_grad=True), torch.tensor([1.0, -1.0, 1.0])
    pccompile.compile(WithTarget())(x, target).backward()
    (expected,) = torch.autograd.grad(F.soft_margin_loss(x, target), x)
    assert torch.equal(x.grad, expected)
    with pytest.raises(PCCompileError, match="not differentiable with respect to argument 'target'"):
        pccompile.compile(WithTarget())(x, target.requires_grad_())


def test_components_that_are_only_held_do_not_require_a_gradient():
    assert_trains_like_eager(Calls(lambda x: torch.ops.aten.native_layer_norm(x, [4], None, None, 1e-5)), torch.ones(4))


class Speech(nn.Module):
    """The connectionist temporal loss has sizes that depend on the targets' lengths."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x):
        lengths = torch.tensor([2, 3])
        frames = torch.tensor([6, 6])
        return F.ctc_loss(self.fc(x).log_softmax(2), torch.ones(2, 3, dtype=torch.long), frames, lengths)


@pytest.mark.parametrize("function", [torch.cov, Speech()])
def test_what_export_cannot_follow_is_traced_symbolically(function):
    torch.manual_seed(0)
    model, x = function if isinstance(function, nn.Module) else Calls(function), torch.randn(6, 2, 5)[:, 0]
    x = torch.randn(6, 2, 5) if isinstance(function, Speech) else x[:4, :4]
    assert_trains_like_eager(model, x)
    with pytest.raises(CaptureError):
        pccompile.compile(model, capture="export", example_inputs=x)


def test_an_operators_tuple_of_results_may_be_returned_as_it_is():
    assert_trains_like_eager(Calls(lambda x: (x.sort(1), x.sum())), torch.randn(3, 4), "symbolic")


def test_a_branch_on_values_is_refused_in_exports_words():
    model = Calls(lambda x: torch.cov(x) if x.sum() > 0 else x)
    with pytest.raises(DataDependentError, match="Could not guard"):
        pccompile.compile(model, example_inputs=torch.randn(3, 3))


@pytest.mark.parametrize(
    "function", [torch.nonzero, torch.unique, lambda x: x[x > 0], lambda x: x.masked_select(x > 0)]
)
def test_sizes_that_depend_on_values_are_computed(function):
    model, more = Calls(lambda x: (x * 2)[function(x).sum().long() % 3]), torch.randn(3, 4)
    assert_trains_like_eager(model, torch.randn(3, 4))
    selecting = Calls(lambda x: x.masked_select(x > 0).sin())
    pc = pccompile.compile(selecting, example_inputs=torch.randn(3, 4).requires_grad_())
    given = more.clone().requires_grad_()
    assert torch.equal(pc(given), selecting(more))  # more or fewer values are selected than at capture


def test_a_compressed_sparse_input_that_learns_is_traced_symbolically():
    model, dense = (
        Calls(lambda x: torch.sparse.sampled_addmm(x, torch.ones(3, 3), torch.ones(3, 3)).to_dense()),
        torch.eye(3),
    )
    x = dense.to_sparse_csr().requires_grad_()
    pccompile.compile(model)(x).sum().backward()
    assert torch.equal(x.grad.to_dense(), dense)
    with pytest.raises(CaptureError, match="sparse_csr"):
        pccompile.compile(model, capture="export")(x)


class NormalisesByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("variance", torch.ones(3))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.variance, training=True)


def test_a_write_that_no_name_tells_of_is_made_explicit_by_export_and_refused_by_symbolic():
    assert_trains_like_eager(NormalisesByHand(), torch.randn(5, 3))
    model = NormalisesByHand()
    with pytest.raises(CaptureError, match="batch_norm writes into mean, which it reads"):
        pccompile.compile(model, capture="symbolic", example_inputs=torch.randn(5, 3).requires_grad_())
    assert torch.equal(model.mean, torch.zeros(3))


def test_export_is_left_as_it_was():
    before = exported_program._collect_all_valid_cia_ops
    pccompile.compile(nn.Linear(3, 3), example_inputs=torch.randn(2, 3))
    assert exported_program._collect_all_valid_cia_ops is before
