"""Batch normalisation in training mode against its reference and against autograd."""

import pytest
import torch
from closeness import assert_close
from layers import strided
from torch.nn import functional

from pccompile.errors import PCCompileError, ShapeError, UsageError
from pccompile.kernels import batch_norm_error, batch_norm_error_into, batch_norm_predict
from pccompile.kernels.batch_norm.configurations import Configuration
from pccompile.kernels.batch_norm.error import ErrorBranch, launch_batch_norm_error
from pccompile.kernels.batch_norm.predict import Branch, launch_batch_norm_predict
from pccompile.kernels.batch_norm.reference import batch_norm_error_reference, batch_norm_reference

NAMES = ("parent_error", "weight_gradient", "bias_gradient")
MOMENTUM, EPS = 0.3, 1e-3


def random_batch(device, shape=(6, 5, 7, 3), dtype=torch.float32):
    """x, error, weight, bias, running mean and running variance."""
    x, error = (2 * torch.randn(shape) + 1).to(dtype), torch.randn(shape).to(dtype)
    weight, bias = (torch.randn(shape[1]).to(dtype) for _ in range(2))
    return [t.to(device) for t in (x, error, weight, bias, torch.randn(shape[1]), torch.rand(shape[1]))]


def check_against_reference(x, error, weight, bias, running_mean, running_var):
    arguments = (x, weight, bias, running_mean, running_var)
    reference = batch_norm_reference(*arguments, MOMENTUM, EPS)
    prediction = batch_norm_predict(*arguments, momentum=MOMENTUM, eps=EPS)
    for name, expected, actual in zip(prediction._fields, reference, prediction, strict=True):
        if expected is None:
            assert actual is None
        else:
            assert_close(name, expected, actual)
    sweep = (error, x, weight, reference[1], reference[2])
    expected = batch_norm_error_reference(*sweep, gain=-0.4)
    for name, reference, actual in zip(NAMES, expected, batch_norm_error(*sweep, gain=-0.4), strict=True):
        assert_close(name, reference, actual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(6, 5, 7, 3), (63, 33)], ids=str)
def test_prediction_and_error_equal_the_reference(device, shape, dtype):
    check_against_reference(*random_batch(device, shape, dtype))


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 1), (1, 3, 60), (3, 1, 1, 1), (2, 3, 2, 2, 3), (2, 3, 1300)], ids=str)
def test_awkward_shapes(device, shape):
    check_against_reference(*random_batch(device, shape))


def test_weight_bias_and_running_statistics_may_be_missing(device):
    x, error, weight, _, _, running_var = random_batch(device)
    check_against_reference(x, error, None, None, None, None)
    check_against_reference(x, error, weight, None, None, running_var)


def test_channels_last_stay_last(device):
    x, error, *rest = random_batch(device)
    last = x.to(memory_format=torch.channels_last)
    check_against_reference(last, error, *rest)
    prediction = batch_norm_predict(last)
    assert prediction.output.stride() == last.stride()
    assert batch_norm_error(error, last, None, *prediction[1:3]).parent_error.stride() == last.stride()


def test_strides_are_followed(device):
    x, error, *rest = random_batch(device, (4, 3, 5))
    check_against_reference(strided(x), error.transpose(0, 1).contiguous().transpose(0, 1), *map(strided, rest))


def test_strides_of_statistics_are_followed(device):
    x, error, weight, *_ = random_batch(device, (4, 3, 5))
    _, mean, rstd, *_ = batch_norm_reference(x, weight, None, None, None, MOMENTUM, EPS)
    found = batch_norm_error(error, x, weight, strided(mean), strided(rstd))
    targets = {name: torch.full_like(tensor, torch.nan) for name, tensor in zip(NAMES, found, strict=True)}
    batch_norm_error_into(error, x, weight, strided(mean), strided(rstd), **targets)
    for name, expected in zip(NAMES, batch_norm_error_reference(error, x, weight, mean, rstd), strict=True):
        assert_close(name, expected, getattr(found, name))
        assert_close(name, expected, targets[name])


def test_elements_far_apart_are_addressed_with_64_bits(device):
    x, *rest = random_batch(device, (3, 2), torch.float16)
    far = torch.empty(2**31 + 4, dtype=torch.float16, device=device).as_strided((3, 2), (2**30, 1))
    check_against_reference(far.copy_(x), *rest)


def test_a_large_mean_does_not_cancel(device):
    x = torch.randn(4, 2, 300, device=device).mul(64).round() / 64 + 1024
    expected = functional.batch_norm(x.double(), None, None, training=True)
    assert_close("output", expected, batch_norm_predict(x).output, ratio=1e-4)


@pytest.mark.parametrize("blocks", [(1, 32), (4, 16)], ids=str)
@pytest.mark.parametrize("accumulate", [False, True])
def test_any_tiles_give_the_same_and_nothing_beside_the_targets_is_touched(device, accumulate, blocks):
    x, error, weight, bias, running_mean, running_var = random_batch(device, (6, 5, 7))
    configuration = Configuration(*blocks, warps=4)
    reference = batch_norm_reference(x, weight, bias, running_mean, running_var, MOMENTUM, EPS)
    outputs = [strided(torch.full_like(x, torch.nan)), *torch.full((2, 5), torch.nan, device=device)]
    moved = [strided(running_mean), strided(running_var)]  # written into in place
    branch = Branch(x, weight, bias, *moved, *outputs[1:], *moved, MOMENTUM, EPS)
    launch_batch_norm_predict(branch, outputs[0], configuration=configuration)
    for index, (expected, actual) in enumerate(zip(reference, (*outputs, *moved), strict=True)):
        assert_close(f"output {index}", expected, actual)
    sweep = (error, x, weight, *reference[1:3])
    references = batch_norm_error_reference(*sweep, gain=0.5)
    before = [torch.randn_like(each) for each in references]
    targets = [strided(tensor if accumulate else torch.full_like(tensor, torch.nan)) for tensor in before]
    flags = {f"accumulate_{name}": accumulate for name in ("parent", "weight", "bias")}
    named = dict(zip(NAMES, targets, strict=True))
    branch = ErrorBranch(*sweep[1:], **named, **flags, gain=0.5)
    launch_batch_norm_error(error, branch, configuration=configuration)
    for name, expected, start, target in zip(NAMES, references, before, targets, strict=True):
        assert_close(name, expected + start if accumulate else expected, target)
    for target in (outputs[0], *moved, *targets):
        assert int(target._base.isnan().sum()) == target._base.numel() - target.numel()


@pytest.mark.parametrize("which", range(3))
def test_each_target_stands_alone_and_accumulates_alone(device, which):
    x, error, weight, *_ = random_batch(device, (6, 5, 7))
    sweep = (error, x, weight, *batch_norm_reference(x, weight, None, None, None, 0.0, EPS)[1:3])
    references = batch_norm_error_reference(*sweep)
    alone = batch_norm_error(*sweep, **{name: index == which for index, name in enumerate(NAMES)})
    assert [part is not None for part in alone] == [index == which for index in range(3)]
    assert_close(NAMES[which], references[which], alone[which])
    targets = [torch.full_like(reference, 3.0) for reference in references]
    flag = ("accumulate_parent", "accumulate_weight", "accumulate_bias")[which]
    batch_norm_error_into(*sweep, **dict(zip(NAMES, targets, strict=True)), **{flag: True})
    for index, (reference, target) in enumerate(zip(references, targets, strict=True)):
        assert_close(NAMES[index], reference + 3.0 if index == which else reference, target)


def test_an_empty_batch_gives_zero_gradients_and_leaves_running_statistics(device):
    x, error, weight, bias, running_mean, running_var = random_batch(device, (0, 5, 7))
    prediction = batch_norm_predict(x, weight, bias, running_mean, running_var)
    assert prediction.output.shape == x.shape and torch.equal(prediction.running_mean, running_mean)
    assert not batch_norm_error(error, x, weight, running_mean, running_var).weight_gradient.any()


def test_every_gradient_equals_autograd(device):
    x, error, weight, bias, *_ = random_batch(device)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    batch_norm_predict(*leaves).output.backward(error)
    functional.batch_norm(exact[0], None, None, *exact[1:], training=True).backward(error.double())
    for name, leaf, expected in zip(("x", "weight", "bias"), leaves, exact, strict=True):
        assert_close(f"gradient of {name}", expected.grad, leaf.grad)


def test_the_operators_keep_their_contract(device):
    x, error, weight, bias, running_mean, running_var = random_batch(device, (2, 3, 2, 2))
    leaves = [tensor.requires_grad_() for tensor in (x.clone(), weight.clone(), bias)]
    arguments = (*leaves, running_mean, running_var, MOMENTUM, EPS)
    torch.library.opcheck(torch.ops.pccompile.batch_norm_predict.default, arguments)
    arguments = (error, x, weight, running_mean, running_var, True, True, False, 0.5)
    torch.library.opcheck(torch.ops.pccompile.batch_norm_error.default, arguments)
    flat = (error.flatten(2), x.flatten(2), weight, running_mean, running_var)
    arguments = (*flat, torch.randn_like(flat[0]), None, torch.randn_like(weight), True, False, False, 0.5)
    torch.library.opcheck(torch.ops.pccompile.batch_norm_error_into.default, arguments)


def test_a_second_derivative_is_refused(device):
    x = torch.randn(3, 4, device=device).requires_grad_()
    (first,) = torch.autograd.grad(batch_norm_predict(x).output.sum(), x, create_graph=True)
    with pytest.raises(PCCompileError, match="create_graph"):
        first.sum().backward()


def test_refusals_name_the_argument(device):
    x, error, weight, _, running_mean, running_var = random_batch(device)
    refused = [
        (UsageError, "float64", (x.double(),)),
        (ShapeError, "weight has shape", (x, weight[1:])),
        (ShapeError, "running_var has shape", (x, None, None, running_mean, x)),
        (ShapeError, "running_mean is on meta", (x, None, None, running_mean.to("meta"))),
        (ShapeError, "one element a channel", (x[:1, :, :1, :1],)),
        (ShapeError, "x has shape", (weight,)),
    ]
    for kind, words, arguments in refused:
        with pytest.raises(kind, match=words):
            batch_norm_predict(*arguments)
    with pytest.raises(ShapeError, match="error has shape"):
        batch_norm_error(error[1:], x, weight, running_mean, running_var)
    with pytest.raises(ShapeError, match=r"mean is torch\.float16"):
        batch_norm_error(error, x, weight, running_mean.half(), running_var.half())
    with pytest.raises(ShapeError, match="mean is on meta"):
        batch_norm_error(error, x, weight, running_mean.to("meta"), running_var.to("meta"))
    with pytest.raises(ShapeError, match="flatten it"):
        batch_norm_error_into(error, x, weight, running_mean, running_var)
