"""linear_predict against its reference and against autograd."""

from importlib import import_module

import pytest
import torch
from closeness import assert_close
from layers import far_apart, random_layer, scattered
from torch import nn

from pccompile.errors import PCCompileError, ShapeError, UsageError
from pccompile.kernels import ACTIVATIONS, linear_error, linear_predict
from pccompile.kernels.linear_predict.configurations import Configuration
from pccompile.kernels.linear_predict.kernel import launch_linear_predict
from pccompile.kernels.linear_predict.reference import linear_predict_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MODULES = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "softplus": nn.Softplus(),
}


def check_against_reference(layer, **options):
    prediction = linear_predict(layer.x, layer.weight, layer.bias, layer.activation, **options)
    output, residual = linear_predict_reference(layer.x, layer.weight, layer.bias, layer.activation)
    assert_close("output", output, prediction.output)
    if residual is None:
        assert prediction.residual is None
    else:
        assert_close("residual", residual, prediction.residual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_output_and_residual_equal_the_reference(device, activation, dtype):
    check_against_reference(random_layer(device, activation=activation, dtype=dtype))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 60, 63), (63, 1, 60), (60, 63, 1), (64, 32, 96), (5, 0, 7)])
def test_awkward_shapes(device, shape):
    check_against_reference(random_layer(device, shape))


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 4, 0), (0, 0, 0)])
def test_an_empty_prediction_launches_nothing(device, shape):
    layer = random_layer(device, shape)
    assert linear_predict(layer.x, layer.weight, layer.bias, "silu").output.shape == (shape[0], shape[2])


def test_strides_are_followed(device):
    check_against_reference(scattered(random_layer(device)))


def test_rows_far_apart_are_addressed_with_64_bits(device):
    layer = random_layer(device, (3, 4, 5), dtype=torch.float16)
    prediction = linear_predict(far_apart(layer.x), layer.weight, layer.bias, "gelu")
    assert_close("output", linear_predict_reference(layer.x, layer.weight, layer.bias, "gelu")[0], prediction.output)


def test_leading_dimensions_are_kept_and_the_bias_may_be_missing(device):
    layer = random_layer(device, (12, 10, 9))
    prediction = linear_predict(layer.x.reshape(2, 1, 6, 10), layer.weight, None, "softplus")
    output, residual = linear_predict_reference(layer.x.reshape(2, 1, 6, 10), layer.weight, None, "softplus")
    assert_close("output", output, prediction.output)
    assert_close("residual", residual, prediction.residual)
    assert_close("one row", output[0, 0, 0], linear_predict(layer.x[0], layer.weight, None, "softplus").output)


def test_tf32_is_an_option(device):
    layer = random_layer(device)
    prediction = linear_predict(layer.x, layer.weight, layer.bias, "tanh", input_precision="tf32")
    reference = linear_predict_reference(layer.x, layer.weight, layer.bias, "tanh")[0]
    assert_close("output", reference, prediction.output, ratio=2e-3)


def test_the_residual_is_the_smallest_that_determines_the_derivative(device):
    layer = random_layer(device, (5, 4, 3))
    for name, kind in {"identity": "none", "relu": "output", "tanh": "output", "silu": "preactivation"}.items():
        output, residual = linear_predict(layer.x, layer.weight, layer.bias, name)
        assert (residual is None) == (kind == "none")
        assert residual is None or (residual.data_ptr() == output.data_ptr()) == (kind == "output")


@pytest.mark.parametrize("blocks", [(16, 64, 32), (64, 16, 16), (32, 32, 64)], ids=str)
def test_every_element_is_written_and_nothing_else_whatever_the_tiles(device, blocks):
    layer = random_layer(device)
    buffers = torch.full((2, 65, 37), torch.nan, device=device)
    output, preactivation = buffers[0, 1:-1, 2:-2], buffers[1, 1:-1, 2:-2]
    configuration = Configuration(*blocks, warps=4, stages=2, group=2)
    launch_linear_predict(layer.x, layer.weight, layer.bias, output, preactivation, "gelu", configuration=configuration)
    reference = linear_predict_reference(layer.x, layer.weight, layer.bias, "gelu")
    assert_close("output", reference[0], output)
    assert_close("pre-activation", reference[1], preactivation)
    assert int(buffers.isnan().sum()) == buffers.numel() - output.numel() - preactivation.numel()


def test_results_repeat_bit_for_bit(device):
    layer = random_layer(device)
    first, second = (linear_predict(layer.x, layer.weight, layer.bias, "gelu") for _ in range(2))
    assert torch.equal(first.output, second.output) and torch.equal(first.residual, second.residual)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_accurate_where_they_vanish_and_where_they_saturate(device, activation):
    z = torch.tensor([1e-6, 1e-3, 0.1, 0.2499, 0.2501, 1.0, 4.0, 19.9, 20.1, 90.0, 1e4], device=device)
    z = torch.cat([z, -z, z.new_zeros(1)])[:, None]
    one = z.new_ones(1, 1).requires_grad_()
    x = z.clone().requires_grad_()
    output = linear_predict(x, one, None, activation).output
    output.sum().backward()
    exact = z.double().requires_grad_()
    expected = MODULES[activation](exact)
    expected.sum().backward()
    # erf reaches -1 in float32: below about -5 gelu is zero to within its absolute error.
    torch.testing.assert_close(output, expected.float(), rtol=3e-6, atol=1e-6 if "gelu" in activation else 1e-30)
    torch.testing.assert_close(x.grad, exact.grad.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_gradient_equals_autograd(device, activation):
    layer = random_layer(device, (33, 20, 35), activation)
    leaves = [tensor.clone().requires_grad_() for tensor in (layer.x, layer.weight, layer.bias)]
    linear_predict(*leaves, activation).output.backward(layer.error)
    exact = [tensor.double().requires_grad_() for tensor in (layer.x, layer.weight, layer.bias)]
    MODULES[activation](nn.functional.linear(*exact)).backward(layer.error.double())
    for name, leaf, expected in zip(("x", "weight", "bias"), leaves, exact, strict=True):
        assert_close(f"gradient of {name}", expected.grad, leaf.grad)


def test_only_the_gradients_asked_for_are_computed(device, monkeypatch):
    asked = []

    def recorded(*arguments, **options):
        asked.append([options[name] for name in ("parent_error", "weight_gradient", "bias_gradient")])
        return linear_error(*arguments, **options)

    operator = import_module("pccompile.kernels.linear_predict.operator")
    monkeypatch.setattr(operator, "linear_error", recorded)
    layer = random_layer(device, (5, 4, 3))
    for index in range(3):
        leaves = [layer.x.clone(), layer.weight.clone(), layer.bias.clone()]
        leaves[index].requires_grad_()
        linear_predict(*leaves, "tanh").output.sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == asked[-1] == [index == other for other in range(3)]


def test_a_second_derivative_is_refused(device):
    layer = random_layer(device, (3, 4, 5), "tanh")
    x = layer.x.clone().requires_grad_()
    (first,) = torch.autograd.grad(linear_predict(x, layer.weight, None, "tanh").output.sum(), x, create_graph=True)
    with pytest.raises(PCCompileError, match="create_graph"):
        first.sum().backward()


def test_refusals_name_the_argument(device):
    layer = random_layer(device, (5, 4, 3))
    x, weight, bias = layer.x, layer.weight, layer.bias
    refused = [
        (UsageError, "float64", (x.double(), weight.double(), bias.double())),
        (ShapeError, "weight is torch.float16", (x, weight.half(), bias)),
        (ShapeError, "bias is on meta", (x, weight, bias.to("meta"))),
        (ShapeError, r"expected \(batch, in\)", (x[:, 1:], weight, bias)),
        (ShapeError, r"expected \(out,\)", (x, weight, bias[1:])),
        (ShapeError, "weight", (x, weight[0], bias)),
        (ShapeError, "x is", (x[0, 0], weight, bias)),
        (UsageError, "'swish'", (x, weight, bias, "swish")),
    ]
    for error, words, arguments in refused:
        with pytest.raises(error, match=words):
            linear_predict(*arguments)
    with pytest.raises(UsageError, match="input_precision"):
        linear_predict(x, weight, bias, input_precision="tf16")
    with pytest.raises(UsageError, match="negative_slope"):
        linear_predict(x, weight, bias, "leaky_relu", negative_slope=-0.5)
