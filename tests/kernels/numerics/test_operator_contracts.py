"""The custom operators keep torch.library's contract, and trace."""

import pytest
import torch
from closeness import assert_close
from layers import random_layer

from pccompile.kernels import linear_error_into, linear_predict
from pccompile.kernels.linear_predict.reference import linear_predict_reference


@pytest.mark.parametrize("activation", ["identity", "tanh", "silu"])
def test_linear_predict_passes_opcheck(device, activation):
    layer = random_layer(device, (3, 4, 5), activation)
    tensors = [tensor.clone().requires_grad_() for tensor in (layer.x, layer.weight, layer.bias)]
    torch.library.opcheck(torch.ops.pccompile.linear_predict.default, (*tensors, activation, 0.01, "ieee"))


@pytest.mark.parametrize("activation", ["identity", "silu"])
def test_linear_error_passes_opcheck(device, activation):
    layer = random_layer(device, (3, 4, 5), activation)
    arguments = (*layer.sweep, True, activation == "silu", True, 0.5, 0.01, "ieee")
    torch.library.opcheck(torch.ops.pccompile.linear_error.default, arguments)


def test_linear_error_into_passes_opcheck(device):
    layer = random_layer(device, (3, 4, 5), "tanh")
    targets = (torch.randn_like(layer.x), torch.randn_like(layer.weight), None)
    arguments = (*layer.sweep[:4], *targets, "tanh", True, False, False, 0.5, 0.01, "ieee")
    torch.library.opcheck(torch.ops.pccompile.linear_error_into.default, arguments)


def test_a_compiled_function_contains_them_whole(device):
    layer = random_layer(device, (3, 4, 5), "tanh")
    gradient = torch.zeros_like(layer.weight)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(x, weight, bias, error, gradient):
        output, residual = linear_predict(x, weight, bias, "tanh")
        linear_error_into(error, residual, x, weight, "tanh", weight_gradient=gradient, accumulate_weight=True)
        return output

    output = step(layer.x, layer.weight, layer.bias, layer.error, gradient)
    assert_close("output", linear_predict_reference(layer.x, layer.weight, layer.bias, "tanh")[0], output)
    assert gradient.any()
