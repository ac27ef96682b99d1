"""conv_predict against its reference, torch's own modules and autograd."""

from dataclasses import replace

import pytest
import torch
from closeness import assert_close
from convolutions import GEOMETRIES, POOLED, channels_last, random_convolution, scattered
from layers import far_apart
from torch.nn import functional

from pccompile.errors import PCCompileError, ShapeError, UsageError
from pccompile.kernels import ACTIVATIONS, Pool, conv_predict
from pccompile.kernels.conv_predict.configurations import Configuration
from pccompile.kernels.conv_predict.kernel import launch_conv_predict
from pccompile.kernels.conv_predict.reference import conv_predict_reference


def predict(layer, **options):
    return conv_predict(layer.x, layer.weight, layer.bias, layer.activation, **layer.options, **options)


def check_against_reference(layer, **options):
    prediction = predict(layer, **options)
    output, residual, argmax = conv_predict_reference(
        layer.x, layer.weight, layer.bias, layer.activation, **layer.options
    )
    assert_close("output", output, prediction.output)
    if residual is None:
        assert prediction.residual is None
    else:
        assert_close("residual", residual, prediction.residual)
    assert (argmax is None and prediction.argmax is None) or torch.equal(argmax, prediction.argmax)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_any_geometry(device, geometry):
    check_against_reference(random_convolution(device, geometry))


@pytest.mark.parametrize("geometry", POOLED)
def test_any_pooling_without_overlap(device, geometry):
    check_against_reference(random_convolution(device, geometry, "silu"))


def test_any_activation(device):
    for activation in ACTIVATIONS:
        check_against_reference(random_convolution(device, "one pixel", activation))


@pytest.mark.parametrize(("geometry", "positions"), [("average", 4), ("maximum, depthwise", 1)])
def test_the_residual_under_a_pooling_is_the_smallest(device, geometry, positions):
    layer = random_convolution(device, geometry, "tanh")
    check_against_reference(layer)
    prediction = predict(layer)
    assert prediction.residual.numel() == positions * prediction.output.numel()
    assert predict(replace(layer, activation="identity")).residual is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("geometry", ["strided", "depthwise"])
def test_half_precision(device, geometry, dtype):
    check_against_reference(random_convolution(device, geometry, dtype=dtype))


def test_torch_agrees(device):
    layer = random_convolution(device, "maximum of a strided", "relu")
    z = functional.conv2d(layer.x.double(), layer.weight.double(), layer.bias.double(), stride=2, padding=1)
    expected, indices = functional.max_pool2d(z.relu(), (3, 2), return_indices=True)
    prediction = predict(layer)
    assert_close("output", expected, prediction.output)
    rows, columns = indices // z.shape[3], indices % z.shape[3]
    assert torch.equal(prediction.argmax.long(), rows % 3 * 2 + columns % 2)


def test_the_maximum_of_equals_is_the_first_and_a_nan_is_kept(device):
    x = torch.tensor([[1.0, 3.0, 3.0, 3.0], [3.0, 0.0, torch.nan, 3.0]], device=device)[None, None]
    prediction = conv_predict(x, x.new_ones(1, 1, 1, 1), pool=Pool("max", 2))
    assert prediction.argmax.flatten().tolist() == [1, 2]
    assert prediction.output.isnan().flatten().tolist() == [False, True]


def test_strides_are_followed(device):
    check_against_reference(scattered(random_convolution(device, "strided")))


@pytest.mark.parametrize("geometry", ["padded", "average"])
def test_channels_last_is_kept(device, geometry):
    layer = channels_last(random_convolution(device, geometry))
    check_against_reference(layer)
    prediction = predict(layer)
    for tensor in (prediction.output, prediction.residual):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert predict(random_convolution(device, geometry)).output.is_contiguous()


def test_images_far_apart_are_addressed_with_64_bits(device):
    layer = random_convolution(device, "strided", dtype=torch.float16)
    far = predict(replace(layer, x=far_apart(layer.x)))
    assert_close("output", predict(layer).output, far.output, ratio=0)


def test_the_bias_may_be_missing_and_the_batch_empty(device):
    layer = random_convolution(device)
    bare = replace(layer, bias=None)
    check_against_reference(bare)
    empty = predict(replace(layer, x=layer.x[:0]))
    assert empty.output.shape == (0, *predict(layer).output.shape[1:])


def test_tf32_is_an_option(device):
    layer = random_convolution(device)
    reference = conv_predict_reference(layer.x, layer.weight, layer.bias, "gelu", **layer.options)[0]
    assert_close("output", reference, predict(layer, input_precision="tf32").output, ratio=2e-3)


@pytest.mark.parametrize("blocks", [(16, 32, 16), (64, 64, 32)], ids=str)
@pytest.mark.parametrize("geometry", ["many outputs", "average with gaps"])
def test_every_element_is_written_and_nothing_else_whatever_the_tiles(device, geometry, blocks):
    layer = random_convolution(device, geometry)
    references = conv_predict_reference(layer.x, layer.weight, layer.bias, "gelu", **layer.options)[:2]
    buffers = [torch.full((r.shape[0], *(s + 2 for s in r.shape[1:])), torch.nan, device=device) for r in references]
    targets = [buffer[:, 1:-1, 1:-1, 1:-1] for buffer in buffers]
    launch_conv_predict(
        layer.x,
        layer.weight,
        layer.bias,
        *targets,
        None,
        layer.geometry,
        "gelu",
        configuration=Configuration(*blocks, warps=4, stages=2, group=2),
    )
    for name, reference, target, buffer in zip(("output", "residual"), references, targets, buffers, strict=True):
        assert_close(name, reference, target)
        assert int(buffer.isnan().sum()) == buffer.numel() - target.numel()


@pytest.mark.parametrize("geometry", ["strided", "narrow groups", "maximum with gaps", "average with gaps"])
def test_every_gradient_equals_autograd(device, geometry):
    layer = random_convolution(device, geometry, "tanh")
    leaves = [tensor.clone().requires_grad_() for tensor in (layer.x, layer.weight, layer.bias)]
    conv_predict(*leaves, "tanh", **layer.options).output.backward(layer.error)
    exact = [tensor.double().requires_grad_() for tensor in (layer.x, layer.weight, layer.bias)]
    options = dict(layer.options)
    pool = options.pop("pool", None)
    output = torch.tanh(functional.conv2d(*exact, **options))
    if pool is not None:
        pooling = functional.max_pool2d if pool.kind == "max" else functional.avg_pool2d
        output = pooling(output, pool.window, pool.stride)
    output.backward(layer.error.double())
    for name, leaf, expected in zip(("x", "weight", "bias"), leaves, exact, strict=True):
        assert_close(f"gradient of {name}", expected.grad, leaf.grad)


def test_a_second_derivative_is_refused(device):
    layer = random_convolution(device, "one pixel", "tanh")
    x = layer.x.clone().requires_grad_()
    (first,) = torch.autograd.grad(conv_predict(x, layer.weight, None, "tanh").output.sum(), x, create_graph=True)
    with pytest.raises(PCCompileError, match="create_graph"):
        first.sum().backward()


def test_results_repeat_bit_for_bit(device):
    layer = random_convolution(device, "pointwise, many channels")
    first, second = predict(layer), predict(layer)
    assert torch.equal(first.output, second.output) and torch.equal(first.residual, second.residual)


def test_refusals_name_the_argument(device):
    layer = random_convolution(device)
    x, weight, bias = layer.x, layer.weight, layer.bias
    refused = [
        (UsageError, "float64", (x.double(), weight.double(), bias.double()), {}),
        (ShapeError, "weight is torch.float16", (x, weight.half(), bias), {}),
        (ShapeError, r"expected \(out,\)", (x, weight, bias[1:]), {}),
        (ShapeError, "x has shape", (x[0], weight, bias), {}),
        (ShapeError, "in 1 groups", (x[:, 1:], weight, bias), {}),
        (ShapeError, "in 2 groups", (x, weight, bias), {"groups": 2}),
        (ShapeError, "nothing is left", (x, weight, bias), {"dilation": 3}),
        (ShapeError, "nothing is left", (x, weight, bias), {"pool": Pool("max", 5)}),
        (UsageError, "stride=0", (x, weight, bias), {"stride": 0}),
        (UsageError, "padding=", (x, weight, bias), {"padding": (1, 1, 1)}),
        (UsageError, "overlap", (x, weight, bias), {"pool": Pool("max", 3, 2)}),
        (UsageError, "more than 64", (x, weight, bias), {"pool": Pool("average", 9)}),
        (UsageError, "'median'", (x, weight, bias), {"pool": Pool("median", 2)}),
        (UsageError, "'swish'", (x, weight, bias, "swish"), {}),
        (UsageError, "input_precision", (x, weight, bias), {"input_precision": "tf16"}),
    ]
    for kind, words, arguments, options in refused:
        with pytest.raises(kind, match=words):
            conv_predict(*arguments, **options)
