"""The convolutions' custom operators keep torch.library's contract, and trace."""

import pytest
import torch
from closeness import assert_close
from convolutions import channels_last, random_convolution

from pccompile.kernels import conv_error_into, conv_predict
from pccompile.kernels.conv_predict.reference import conv_predict_reference

POOLS = {"none": [1, 1, 1, 1], "max": [2, 1, 3, 2], "average": [2, 1, 2, 2]}
LAYERS = {"none": "one pixel", "max": "maximum with gaps", "average": "average with gaps"}


def convolution_of(pool):
    """The operators' arguments of the layer's geometry."""
    stride, padding = ([2, 2], [2, 2]) if pool == "average" else ([1, 1], [0, 0])
    return stride, padding, [1, 1], 1, pool, POOLS[pool]


@pytest.mark.parametrize(("pool", "activation"), [("none", "identity"), ("max", "silu"), ("average", "tanh")])
def test_conv_predict_passes_opcheck(device, pool, activation):
    layer = random_convolution(device, LAYERS[pool], activation)
    tensors = [tensor.clone().requires_grad_() for tensor in (layer.x, layer.weight, layer.bias)]
    arguments = (*tensors, activation, *convolution_of(pool), 0.01, "ieee")
    torch.library.opcheck(torch.ops.pccompile.conv_predict.default, arguments)


@pytest.mark.parametrize(("pool", "activation"), [("none", "identity"), ("max", "silu"), ("average", "tanh")])
def test_conv_error_passes_opcheck(device, pool, activation):
    layer = channels_last(random_convolution(device, LAYERS[pool], activation))
    arguments = (*layer.sweep, *convolution_of(pool), True, pool == "max", True, 0.5, 0.01, "ieee")
    torch.library.opcheck(torch.ops.pccompile.conv_error.default, arguments)


def test_conv_error_into_passes_opcheck(device):
    layer = random_convolution(device, "one pixel", "tanh")
    targets = (torch.randn_like(layer.x), torch.randn_like(layer.weight), None)
    arguments = (*layer.sweep[:5], *targets, "tanh", *convolution_of("none"), True, False, False, 0.5, 0.01, "ieee")
    torch.library.opcheck(torch.ops.pccompile.conv_error_into.default, arguments)


@pytest.mark.parametrize(("pool", "moves"), [("none", True), ("average", False)])
def test_conv_step_passes_opcheck(device, pool, moves):
    layer = random_convolution(device, LAYERS[pool], "tanh")
    others = (None, torch.randn_like(layer.x)) if moves else (None, None)
    tensors = (layer.x, layer.weight, layer.bias, layer.error, *others)
    arguments = (*tensors, "tanh", *convolution_of(pool), True, 0.1, 0.01, "ieee")
    torch.library.opcheck(torch.ops.pccompile.conv_step.default, arguments)


def test_a_compiled_function_contains_them_whole(device):
    layer = random_convolution(device, "padded", "tanh")
    gradient = torch.zeros_like(layer.weight)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(x, weight, bias, error, gradient):
        output, residual, _ = conv_predict(x, weight, bias, "tanh", padding=1)
        conv_error_into(error, residual, None, x, weight, "tanh", padding=1, weight_gradient=gradient)
        return output

    output = step(layer.x, layer.weight, layer.bias, layer.error, gradient)
    expected = conv_predict_reference(layer.x, layer.weight, layer.bias, "tanh", padding=1)[0]
    assert_close("output", expected, output)
    assert gradient.any()
