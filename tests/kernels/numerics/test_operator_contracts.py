"""The custom operators keep torch.library's contract, and trace."""

import pytest
import torch
from chains import random_chain
from closeness import assert_close
from layers import random_layer
from random_networks import random_network

from pccompile.kernels import linear_error_into, linear_predict, linear_step_into, strict_sweep
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


@pytest.mark.parametrize("prediction", [False, True])
def test_linear_step_passes_opcheck(device, prediction):
    layer = random_layer(device, (3, 4, 5), "silu")
    arguments = (layer.error, layer.x, layer.weight, layer.bias, "silu", prediction, 0.01, "ieee")
    torch.library.opcheck(torch.ops.pccompile.linear_step.default, arguments)


def test_linear_step_into_passes_opcheck(device):
    layer = random_layer(device, (3, 4, 5), "tanh")
    targets = (torch.empty_like(layer.error), torch.randn_like(layer.x))
    arguments = (layer.error, layer.x, layer.weight, None, *targets, "tanh", True, 0.01, "ieee")
    torch.library.opcheck(torch.ops.pccompile.linear_step_into.default, arguments)


@pytest.mark.parametrize(("record", "learn_errors"), [(False, "current"), (True, "previous")])
def test_strict_sweep_passes_opcheck(device, record, learn_errors):
    chain = random_chain(device, 3, (4, 5, 3), ("tanh", "identity"))
    biases = [chain.biases[0], None]
    options = (False, learn_errors, record, 2, 0.1, 0.5, 1.0, -100, 0.01, "ieee", "batch_tiles", record)
    arguments = (chain.x, chain.target, chain.weights, biases, "tanh,identity", "cross_entropy", *options)
    torch.library.opcheck(torch.ops.pccompile.strict_sweep.default, arguments)


@pytest.mark.parametrize("upstream", [None, torch.tensor(0.5)], ids=str)
def test_chain_gradients_passes_opcheck(device, upstream):
    chain = random_chain(device, 3, (4, 5, 3), ("tanh", "identity"))
    upstream = None if upstream is None else upstream.to(device)
    values, drives = torch.randn(2, 3, 32, device=device)
    arguments = (chain.x, values, drives, chain.weights, -1.0, upstream, "ieee")
    torch.library.opcheck(torch.ops.pccompile.chain_gradients.default, arguments)


NETWORK_FORMS = [2, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("record", "learn_errors"), [(False, "current"), (True, "previous")])
def test_network_sweep_passes_opcheck(device, record, learn_errors):
    network = random_network(device, "tiny", batch=2)
    weights, biases = [layer.weight for layer in network.layers], [network.layers[0].bias, None]
    options = (False, learn_errors, record, 2, 0.1, 0.5, 1.0, -100, 0.01, "ieee", "ieee", record)
    layers = (weights, biases, "tanh,identity", "none,none", NETWORK_FORMS)
    arguments = (network.x, network.target, *layers, "cross_entropy", *options)
    torch.library.opcheck(torch.ops.pccompile.network_sweep.default, arguments)


def test_network_gradients_passes_opcheck(device):
    network = random_network(device, "tiny", batch=2)
    weights, upstream = [layer.weight for layer in network.layers], torch.tensor(0.5, device=device)
    values, drives = torch.randn(2, 2, 32, device=device)
    layers = (weights, [None, None], "tanh,identity", "none,none", NETWORK_FORMS)
    arguments = (network.x, values, drives, *layers, -1.0, upstream, "ieee", "ieee")
    torch.library.opcheck(torch.ops.pccompile.network_gradients.default, arguments)


def test_a_compiled_function_contains_a_sweep_whole(device):
    chain = random_chain(device, 3, (4, 5, 3), ("tanh", "identity"))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def sweep(x, target, weights, biases, error):
        found = strict_sweep(x, target, weights, biases, ["tanh", "identity"], steps=2, step_size=0.1)
        linear_step_into(found.values[0], x, weights[0], error=error, drive=torch.empty_like(x))
        return found.weight_gradients

    error = torch.zeros(3, 5, device=device)
    found = sweep(*chain.arguments[:4], error)
    expected = strict_sweep(*chain.arguments, steps=2, step_size=0.1).weight_gradients
    assert all(map(torch.equal, expected, found)) and error.any()


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
