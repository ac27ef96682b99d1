"""The LSTM's recurrence against its reference, and the layer against torch.nn.LSTM."""

import pytest
import torch
from closeness import assert_close
from layers import normals, strided
from torch import nn

from pccompile.errors import PCCompileError, ShapeError, UsageError
from pccompile.kernels import lstm_error, lstm_predict
from pccompile.kernels.launches import counting_launches
from pccompile.kernels.lstm.kernel import launch_lstm_recurrence, launch_lstm_recurrence_error
from pccompile.kernels.lstm.reference import lstm_recurrence_error_reference, lstm_recurrence_reference
from pccompile.kernels.recurrences import Configuration

recurrence = torch.ops.pccompile.lstm_recurrence
recurrence_error = torch.ops.pccompile.lstm_recurrence_error
learned_error = torch.ops.pccompile.lstm_recurrence_learned_error


def random_recurrence(device, steps=3, batch=7, units=10, dtype=torch.float32):
    """Drive, weight, and first hidden state and cell."""
    normal = normals(None, dtype, device)
    weight = normal(4 * units, units) / max(units, 1) ** 0.5
    return normal(steps, batch, 4 * units), weight, normal(batch, units), normal(batch, units)


def check_against_reference(drive, weight, hidden, cell, ratio=None):
    reference = lstm_recurrence_reference(drive, weight, hidden, cell)
    actual = recurrence(drive, weight, hidden, cell, "ieee")
    for name, expected, result in zip(("hiddens", "cells", "gates"), reference, actual, strict=True):
        assert_close(name, expected, result, ratio)
    errors = [torch.randn(size).to(drive) for size in (reference[0][1:].shape, hidden.shape, cell.shape)]
    sweep = (*errors, weight, *reference[1:])
    expected = lstm_recurrence_error_reference(*sweep)
    actual = recurrence_error(*sweep, "ieee")
    for name, right, result in zip(("drive", "hidden", "cell"), expected, actual, strict=True):
        assert_close(f"{name} error", right, result, ratio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_recurrence_equals_the_reference(device, dtype):
    check_against_reference(*random_recurrence(device, dtype=dtype))


def test_the_recurrence_equals_the_reference_in_bfloat16(device):
    # States are rounded at every step: by truncation under the interpreter.
    check_against_reference(*random_recurrence(device, dtype=torch.bfloat16), ratio=3e-2)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 17, 33), (4, 1, 5), (0, 3, 4), (2, 0, 4)], ids=str)
def test_awkward_and_empty_shapes(device, shape):
    check_against_reference(*random_recurrence(device, *shape))


def test_strides_are_followed(device):
    check_against_reference(*map(strided, random_recurrence(device)))


@pytest.mark.parametrize("blocks", [(16, 16, 16), (32, 64, 16)], ids=str)
def test_any_tiles_give_the_same_and_every_element_is_written(device, blocks):
    drive, weight, hidden, cell = random_recurrence(device, batch=33, units=20)
    configuration = Configuration(*blocks, warps=4, stages=2)
    reference = lstm_recurrence_reference(drive, weight, hidden, cell)
    outputs = [torch.full_like(each, torch.nan) for each in reference]
    launch_lstm_recurrence(drive, weight, hidden, cell, *outputs, configuration=configuration)
    for index, (expected, actual) in enumerate(zip(reference, outputs, strict=True)):
        assert_close(f"output {index}", expected, actual)
    sweep = (torch.randn_like(reference[0][1:]), None, None, weight, *reference[1:])
    targets = [torch.full_like(each, torch.nan) for each in (drive, hidden, cell)]
    launch_lstm_recurrence_error(*sweep, *targets, configuration=configuration)
    for index, (expected, actual) in enumerate(zip(lstm_recurrence_error_reference(*sweep), targets, strict=True)):
        assert_close(f"error {index}", expected, actual)


def layer_and_input(device, steps=4, batch=5, inputs=6, units=7):
    layer = nn.LSTM(inputs, units).to(device)
    x, hidden, cell = (torch.randn(size, device=device) for size in ((steps, batch, inputs), *[(batch, units)] * 2))
    return layer, x, hidden, cell


def test_a_layer_and_every_gradient_equal_torchs(device):
    layer, x, hidden, cell = layer_and_input(device)
    exact = nn.LSTM(6, 7, dtype=torch.float64, device=device)
    exact.load_state_dict(layer.state_dict())
    inputs = [tensor.double().requires_grad_() for tensor in (x, hidden, cell)]
    output, (last_hidden, last_cell) = exact(inputs[0], (inputs[1][None], inputs[2][None]))
    errors = [torch.randn_like(each) for each in (output, last_hidden[0], last_cell[0])]
    torch.autograd.backward([output, last_hidden[0], last_cell[0]], errors)

    leaves = [tensor.clone().requires_grad_() for tensor in (x, hidden, cell)]
    bias = layer.bias_ih_l0 + layer.bias_hh_l0
    prediction = lstm_predict(leaves[0], layer.weight_ih_l0, layer.weight_hh_l0, bias, *leaves[1:])
    torch.autograd.backward(list(prediction[:3]), [each.float() for each in errors])
    for index, expected in enumerate((output, last_hidden[0], last_cell[0])):
        assert_close(prediction._fields[index], expected, prediction[index], ratio=2e-6)
    for name, right, leaf in zip(("x", "hidden", "cell"), inputs, leaves, strict=True):
        assert_close(f"gradient of {name}", right.grad, leaf.grad, ratio=2e-6)
    for (name, right), parameter in zip(exact.named_parameters(), layer.parameters(), strict=True):
        assert_close(f"gradient of {name}", right.grad, parameter.grad, ratio=2e-6)


def test_the_error_sweep_equals_autograd_in_three_launches(device):
    layer, x, _, _ = layer_and_input(device)
    weights = (layer.weight_ih_l0.detach(), layer.weight_hh_l0.detach())
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *weights)]
    error = torch.randn(4, 5, 7, device=device)
    prediction = lstm_predict(*leaves)
    prediction.output.backward(error)
    with counting_launches() as launches:
        sweep = lstm_error(error, x, *weights, *prediction[3:], gain=-0.5)
    assert launches["lstm_recurrence_error"] == 1
    assert_close("parent_error", leaves[0].grad, sweep.parent_error)
    assert_close("weight_input_gradient", -0.5 * leaves[1].grad, sweep.weight_input_gradient)
    assert_close("weight_hidden_gradient", -0.5 * leaves[2].grad, sweep.weight_hidden_gradient)
    part = lstm_error(error, x, *weights, *prediction[3:], weight_gradient=False, bias_gradient=False)
    assert part.weight_input_gradient is part.weight_hidden_gradient is part.bias_gradient is None


def test_results_repeat_bit_for_bit(device):
    arguments = random_recurrence(device, steps=2)
    for first, second in zip(recurrence(*arguments, "ieee"), recurrence(*arguments, "ieee"), strict=True):
        assert torch.equal(first, second)


def test_the_operators_keep_their_contract(device):
    arguments = random_recurrence(device, 2, 3, 4)
    leaves = [tensor.clone().requires_grad_() for tensor in arguments]
    torch.library.opcheck(recurrence.default, (*leaves, "ieee"))
    _, cells, gates = recurrence(*arguments, "ieee")
    arguments = (torch.randn_like(cells[1:]), None, torch.randn_like(cells[0]), arguments[1], cells, gates, "ieee")
    torch.library.opcheck(recurrence_error.default, arguments)
    gains = torch.randn(2, 2, 4, device=device)
    torch.library.opcheck(learned_error.default, (*arguments[:-1], gains, "ieee"))


def test_what_gradients_read_has_a_gain_for_each_step_and_gate(device):
    drive, weight, hidden, cell = random_recurrence(device, batch=17, units=20)
    _, cells, gates = recurrence(drive, weight, hidden, cell, "ieee")
    sweep = (torch.randn_like(cells[1:]), None, torch.randn_like(cell), weight, cells, gates)
    gains = torch.randn(2, 3, 4, device=device)
    plain, *learned, first_hidden, first_cell = learned_error(*sweep, gains, "ieee")
    for expected, actual in zip(recurrence_error(*sweep, "ieee"), (plain, first_hidden, first_cell), strict=True):
        assert torch.equal(expected, actual)
    for gain, scaled in zip(gains, learned, strict=True):
        assert_close("scaled", (plain.unflatten(-1, (4, 20)) * gain[:, None, :, None]).flatten(-2), scaled)


def test_a_second_derivative_is_refused(device):
    layer, x, _, _ = layer_and_input(device, steps=2)
    leaf = x.requires_grad_()
    output = lstm_predict(leaf, layer.weight_ih_l0, layer.weight_hh_l0).output
    (first,) = torch.autograd.grad(output.sum(), leaf, create_graph=True)
    with pytest.raises(PCCompileError, match="create_graph"):
        first.sum().backward()


def test_refusals_name_the_argument(device):
    layer, x, hidden, cell = layer_and_input(device)
    weights = (layer.weight_ih_l0.detach(), layer.weight_hh_l0.detach())
    with pytest.raises(ShapeError, match="hidden has shape"):
        lstm_predict(x, *weights, None, hidden[1:], cell)
    with pytest.raises(ShapeError, match="x has shape"):
        lstm_predict(x[0], *weights)
    with pytest.raises(UsageError, match="float64"):
        lstm_predict(x.double(), *(weight.double() for weight in weights))
    prediction = lstm_predict(x, *weights)
    with pytest.raises(ShapeError, match="gates has shape"):
        lstm_error(prediction.output, x, *weights, *prediction[3:5], prediction.gates[1:])
    with pytest.raises(UsageError, match="input_precision"):
        lstm_error(prediction.output, x, *weights, *prediction[3:], input_precision="fast")
