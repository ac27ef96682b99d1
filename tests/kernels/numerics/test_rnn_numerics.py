"""The RNN's recurrence against its reference, and the layer against torch.nn.RNN."""

import pytest
import torch
from closeness import assert_close
from layers import normals, strided
from torch import nn

from pccompile.errors import PCCompileError, ShapeError, UsageError
from pccompile.kernels import rnn_error, rnn_predict
from pccompile.kernels.launches import counting_launches
from pccompile.kernels.recurrences import Configuration
from pccompile.kernels.rnn.kernel import launch_rnn_recurrence, launch_rnn_recurrence_error
from pccompile.kernels.rnn.reference import rnn_recurrence_error_reference, rnn_recurrence_reference

recurrence = torch.ops.pccompile.rnn_recurrence
recurrence_error = torch.ops.pccompile.rnn_recurrence_error
learned_error = torch.ops.pccompile.rnn_recurrence_learned_error

ACTIVATIONS = ["tanh", "relu"]


def random_recurrence(device, steps=3, batch=7, units=10, dtype=torch.float32):
    """Drive, weight and first hidden state."""
    normal = normals(None, dtype, device)
    weight = normal(units, units) / max(units, 1) ** 0.5
    return normal(steps, batch, units), weight, normal(batch, units)


def check_against_reference(drive, weight, hidden, activation="tanh", ratio=None):
    reference = rnn_recurrence_reference(drive, weight, hidden, activation)
    assert_close("hiddens", reference, recurrence(drive, weight, hidden, activation, "ieee"), ratio)
    errors = torch.randn(drive.shape).to(drive), torch.randn(hidden.shape).to(drive)
    sweep = (*errors, weight, reference, activation)
    expected = rnn_recurrence_error_reference(*sweep)
    for name, right, result in zip(("drive", "hidden"), expected, recurrence_error(*sweep, "ieee"), strict=True):
        assert_close(f"{name} error", right, result, ratio)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_recurrence_equals_the_reference(device, dtype, activation):
    check_against_reference(*random_recurrence(device, dtype=dtype), activation)


def test_the_recurrence_equals_the_reference_in_bfloat16(device):
    # States are rounded at every step: by truncation under the interpreter.
    check_against_reference(*random_recurrence(device, dtype=torch.bfloat16), ratio=3e-2)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 17, 33), (4, 1, 5), (0, 3, 4), (2, 0, 4)], ids=str)
def test_awkward_and_empty_shapes(device, shape):
    check_against_reference(*random_recurrence(device, *shape))


def test_strides_are_followed(device):
    check_against_reference(*map(strided, random_recurrence(device)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("blocks", [(16, 16, 16), (32, 64, 16)], ids=str)
def test_any_tiles_give_the_same_and_every_element_is_written(device, blocks, activation):
    drive, weight, hidden = random_recurrence(device, batch=33, units=20)
    configuration = Configuration(*blocks, warps=4, stages=2)
    reference = rnn_recurrence_reference(drive, weight, hidden, activation)
    hiddens = torch.full_like(reference, torch.nan)
    launch_rnn_recurrence(drive, weight, hidden, hiddens, activation, configuration=configuration)
    assert_close("hiddens", reference, hiddens)
    sweep = (torch.randn_like(drive), None, weight, reference)
    targets = [torch.full_like(each, torch.nan) for each in (drive, hidden)]
    launch_rnn_recurrence_error(*sweep, *targets, activation, configuration=configuration)
    expected = rnn_recurrence_error_reference(*sweep, activation)
    for name, right, actual in zip(("drive", "hidden"), expected, targets, strict=True):
        assert_close(f"{name} error", right, actual)


def layer_and_input(device, activation="tanh", steps=4, batch=5, inputs=6, units=7):
    layer = nn.RNN(inputs, units, nonlinearity=activation).to(device)
    return layer, torch.randn(steps, batch, inputs, device=device), torch.randn(batch, units, device=device)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_layer_and_every_gradient_equal_torchs(device, activation):
    layer, x, hidden = layer_and_input(device, activation)
    exact = nn.RNN(6, 7, nonlinearity=activation, dtype=torch.float64, device=device)
    exact.load_state_dict(layer.state_dict())
    inputs = [tensor.double().requires_grad_() for tensor in (x, hidden)]
    output, last = exact(inputs[0], inputs[1][None])
    errors = [torch.randn_like(each) for each in (output, last[0])]
    torch.autograd.backward([output, last[0]], errors)

    leaves = [tensor.clone().requires_grad_() for tensor in (x, hidden)]
    bias = layer.bias_ih_l0 + layer.bias_hh_l0
    weights = layer.weight_ih_l0, layer.weight_hh_l0
    prediction = rnn_predict(leaves[0], *weights, bias, leaves[1], activation=activation)
    torch.autograd.backward(list(prediction[:2]), [each.float() for each in errors])
    for index, expected in enumerate((output, last[0])):
        assert_close(prediction._fields[index], expected, prediction[index], ratio=2e-6)
    for name, right, leaf in zip(("x", "hidden"), inputs, leaves, strict=True):
        assert_close(f"gradient of {name}", right.grad, leaf.grad, ratio=2e-6)
    for (name, right), parameter in zip(exact.named_parameters(), layer.parameters(), strict=True):
        assert_close(f"gradient of {name}", right.grad, parameter.grad, ratio=2e-6)


def test_the_error_sweep_equals_autograd_in_three_launches(device):
    layer, x, _ = layer_and_input(device)
    weights = (layer.weight_ih_l0.detach(), layer.weight_hh_l0.detach())
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *weights, layer.bias_ih_l0.detach())]
    error, last = torch.randn(4, 5, 7, device=device), torch.randn(5, 7, device=device)
    prediction = rnn_predict(*leaves)
    torch.autograd.backward([prediction.output, prediction.hidden], [error, last])
    with counting_launches() as launches:
        sweep = rnn_error(error, x, *weights, prediction.hiddens, hidden_error=last, gain=-0.5)
    assert launches == {"rnn_recurrence_error": 1, "linear_error": 2}
    assert_close("parent_error", leaves[0].grad, sweep.parent_error)
    for gradient, leaf in zip(sweep[2:], leaves[1:], strict=True):
        assert_close("gradient", -0.5 * leaf.grad, gradient)
    part = rnn_error(error, x, *weights, prediction.hiddens, weight_gradient=False, bias_gradient=False)
    assert all(gradient is None for gradient in part[2:])


def test_results_repeat_bit_for_bit(device):
    arguments = random_recurrence(device, steps=2)
    assert torch.equal(recurrence(*arguments, "tanh", "ieee"), recurrence(*arguments, "tanh", "ieee"))


def test_the_operators_keep_their_contract(device):
    arguments = random_recurrence(device, 2, 3, 4)
    leaves = [tensor.clone().requires_grad_() for tensor in arguments]
    torch.library.opcheck(recurrence.default, (*leaves, "tanh", "ieee"))
    hiddens = recurrence(*arguments, "relu", "ieee")
    errors = torch.randn_like(hiddens[1:]), torch.randn_like(hiddens[0])
    torch.library.opcheck(recurrence_error.default, (*errors, arguments[1], hiddens, "relu", "ieee"))
    gains = torch.randn(2, 2, 1, device=device)
    torch.library.opcheck(learned_error.default, (*errors, arguments[1], hiddens, gains, "relu", "ieee"))


def test_what_gradients_read_has_a_gain_for_each_step(device):
    drive, weight, hidden = random_recurrence(device, batch=17, units=20)
    hiddens = recurrence(drive, weight, hidden, "tanh", "ieee")
    sweep = (torch.randn_like(hiddens[1:]), torch.randn_like(hidden), weight, hiddens)
    gains = torch.randn(2, 3, 1, device=device)
    drive_error, first = recurrence_error(*sweep, "tanh", "ieee")
    plain, *learned, first_hidden = learned_error(*sweep, gains, "tanh", "ieee")
    assert torch.equal(drive_error, plain) and torch.equal(first, first_hidden)
    for gain, scaled in zip(gains, learned, strict=True):
        assert_close("scaled", drive_error * gain[:, None], scaled)


def test_a_second_derivative_is_refused(device):
    layer, x, _ = layer_and_input(device, steps=2)
    leaf = x.requires_grad_()
    output = rnn_predict(leaf, layer.weight_ih_l0, layer.weight_hh_l0).output
    (first,) = torch.autograd.grad(output.sum(), leaf, create_graph=True)
    with pytest.raises(PCCompileError, match="create_graph"):
        first.sum().backward()


def test_refusals_name_the_argument(device):
    layer, x, hidden = layer_and_input(device)
    weights = (layer.weight_ih_l0.detach(), layer.weight_hh_l0.detach())
    with pytest.raises(ShapeError, match="hidden has shape"):
        rnn_predict(x, *weights, None, hidden[1:])
    with pytest.raises(ShapeError, match="x has shape"):
        rnn_predict(x[0], *weights)
    with pytest.raises(UsageError, match="float64"):
        rnn_predict(x.double(), *(weight.double() for weight in weights))
    with pytest.raises(UsageError, match="activation='gelu'"):
        rnn_predict(x, *weights, activation="gelu")
    prediction = rnn_predict(x, *weights)
    with pytest.raises(ShapeError, match="hiddens has shape"):
        rnn_error(prediction.output, x, *weights, prediction.hiddens[1:])
    with pytest.raises(UsageError, match="input_precision"):
        rnn_error(prediction.output, x, *weights, prediction.hiddens, input_precision="fast")
