"""The GRU's recurrence against its reference, and the layer against torch.nn.GRU."""

import pytest
import torch
from closeness import assert_close
from layers import normals, strided
from torch import nn

from pccompile.errors import PCCompileError, ShapeError, UsageError
from pccompile.kernels import gru_error, gru_predict
from pccompile.kernels.gru.kernel import launch_gru_recurrence, launch_gru_recurrence_error
from pccompile.kernels.gru.reference import gru_recurrence_error_reference, gru_recurrence_reference
from pccompile.kernels.launches import counting_launches
from pccompile.kernels.recurrences import Configuration

recurrence = torch.ops.pccompile.gru_recurrence
recurrence_error = torch.ops.pccompile.gru_recurrence_error
learned_error = torch.ops.pccompile.gru_recurrence_learned_error


def random_recurrence(device, steps=3, batch=7, units=10, dtype=torch.float32, bias=True):
    """Drive, weight, bias and first hidden state."""
    normal = normals(None, dtype, device)
    weight = normal(3 * units, units) / max(units, 1) ** 0.5
    return normal(steps, batch, 3 * units), weight, normal(3 * units) if bias else None, normal(batch, units)


def check_against_reference(drive, weight, bias, hidden, ratio=None):
    reference = gru_recurrence_reference(drive, weight, bias, hidden)
    actual = recurrence(drive, weight, bias, hidden, "ieee")
    for name, expected, result in zip(("hiddens", "gates"), reference, actual, strict=True):
        assert_close(name, expected, result, ratio)
    sweep = (torch.randn(reference[0][1:].shape).to(drive), torch.randn(hidden.shape).to(drive), weight, *reference)
    expected = gru_recurrence_error_reference(*sweep)
    actual = recurrence_error(*sweep, "ieee")
    for name, right, result in zip(("drive", "state", "hidden"), expected, actual, strict=True):
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


def test_a_layer_without_biases(device):
    check_against_reference(*random_recurrence(device, bias=False))


def test_strides_are_followed(device):
    check_against_reference(*map(strided, random_recurrence(device)))


@pytest.mark.parametrize("blocks", [(16, 16, 16), (32, 64, 16)], ids=str)
def test_any_tiles_give_the_same_and_every_element_is_written(device, blocks):
    arguments = random_recurrence(device, batch=33, units=20)
    drive, weight, _, hidden = arguments
    configuration = Configuration(*blocks, warps=4, stages=2)
    reference = gru_recurrence_reference(*arguments)
    outputs = [torch.full_like(each, torch.nan) for each in reference]
    launch_gru_recurrence(*arguments, *outputs, configuration=configuration)
    for index, (expected, actual) in enumerate(zip(reference, outputs, strict=True)):
        assert_close(f"output {index}", expected, actual)
    sweep = (torch.randn_like(reference[0][1:]), None, weight, *reference)
    targets = [torch.full_like(each, torch.nan) for each in (drive, drive, hidden)]
    launch_gru_recurrence_error(*sweep, *targets, configuration=configuration)
    for index, (expected, actual) in enumerate(zip(gru_recurrence_error_reference(*sweep), targets, strict=True)):
        assert_close(f"error {index}", expected, actual)


def layer_and_input(device, steps=4, batch=5, inputs=6, units=7):
    layer = nn.GRU(inputs, units).to(device)
    return layer, torch.randn(steps, batch, inputs, device=device), torch.randn(batch, units, device=device)


def parameters_of(layer):
    return [parameter.detach() for parameter in layer.parameters()]


def test_a_layer_and_every_gradient_equal_torchs(device):
    layer, x, hidden = layer_and_input(device)
    exact = nn.GRU(6, 7, dtype=torch.float64, device=device)
    exact.load_state_dict(layer.state_dict())
    inputs = [tensor.double().requires_grad_() for tensor in (x, hidden)]
    output, last = exact(inputs[0], inputs[1][None])
    errors = [torch.randn_like(each) for each in (output, last[0])]
    torch.autograd.backward([output, last[0]], errors)

    leaves = [tensor.clone().requires_grad_() for tensor in (x, hidden)]
    prediction = gru_predict(leaves[0], *layer.parameters(), leaves[1])
    torch.autograd.backward(list(prediction[:2]), [each.float() for each in errors])
    for index, expected in enumerate((output, last[0])):
        assert_close(prediction._fields[index], expected, prediction[index], ratio=2e-6)
    for name, right, leaf in zip(("x", "hidden"), inputs, leaves, strict=True):
        assert_close(f"gradient of {name}", right.grad, leaf.grad, ratio=2e-6)
    for (name, right), parameter in zip(exact.named_parameters(), layer.parameters(), strict=True):
        assert_close(f"gradient of {name}", right.grad, parameter.grad, ratio=2e-6)


def test_the_error_sweep_equals_autograd_in_three_launches(device):
    layer, x, _ = layer_and_input(device)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *parameters_of(layer))]
    weights = parameters_of(layer)[:2]
    error, last = torch.randn(4, 5, 7, device=device), torch.randn(5, 7, device=device)
    prediction = gru_predict(*leaves)
    torch.autograd.backward([prediction.output, prediction.hidden], [error, last])
    with counting_launches() as launches:
        sweep = gru_error(error, x, *weights, *prediction[2:], hidden_error=last, gain=-0.5)
    assert launches == {"gru_recurrence_error": 1, "linear_error": 2}
    assert_close("parent_error", leaves[0].grad, sweep.parent_error)
    for gradient, leaf in zip(sweep[2:], leaves[1:], strict=True):
        assert_close("gradient", -0.5 * leaf.grad, gradient)
    part = gru_error(error, x, *weights, *prediction[2:], weight_gradient=False, bias_gradient=False)
    assert all(gradient is None for gradient in part[2:])


def test_results_repeat_bit_for_bit(device):
    arguments = random_recurrence(device, steps=2)
    for first, second in zip(recurrence(*arguments, "ieee"), recurrence(*arguments, "ieee"), strict=True):
        assert torch.equal(first, second)


def test_the_operators_keep_their_contract(device):
    arguments = random_recurrence(device, 2, 3, 4)
    leaves = [tensor.clone().requires_grad_() for tensor in arguments]
    torch.library.opcheck(recurrence.default, (*leaves, "ieee"))
    hiddens, gates = recurrence(*arguments, "ieee")
    errors = torch.randn_like(hiddens[1:]), torch.randn_like(hiddens[0])
    torch.library.opcheck(recurrence_error.default, (*errors, arguments[1], hiddens, gates, "ieee"))
    gains = torch.randn(2, 2, 3, device=device)
    torch.library.opcheck(learned_error.default, (*errors, arguments[1], hiddens, gates, gains, "ieee"))


def test_what_gradients_read_has_a_gain_for_each_step_and_gate(device):
    drive, weight, bias, hidden = random_recurrence(device, batch=17, units=20)
    hiddens, gates = recurrence(drive, weight, bias, hidden, "ieee")
    sweep = (torch.randn_like(hiddens[1:]), torch.randn_like(hidden), weight, hiddens, gates)
    gains = torch.randn(2, 3, 3, device=device)
    drive_error, state_error, first = recurrence_error(*sweep, "ieee")
    plain, *learned, first_hidden = learned_error(*sweep, gains, "ieee")
    assert torch.equal(drive_error, plain) and torch.equal(first, first_hidden)
    for gain, error, scaled in zip(gains, (drive_error, state_error), learned, strict=True):
        assert_close("scaled", (error.unflatten(-1, (3, 20)) * gain[:, None, :, None]).flatten(-2), scaled)


def test_a_second_derivative_is_refused(device):
    layer, x, _ = layer_and_input(device, steps=2)
    leaf = x.requires_grad_()
    output = gru_predict(leaf, *parameters_of(layer)).output
    (first,) = torch.autograd.grad(output.sum(), leaf, create_graph=True)
    with pytest.raises(PCCompileError, match="create_graph"):
        first.sum().backward()


def test_refusals_name_the_argument(device):
    layer, x, hidden = layer_and_input(device)
    weights = parameters_of(layer)[:2]
    with pytest.raises(ShapeError, match="hidden has shape"):
        gru_predict(x, *weights, None, None, hidden[1:])
    with pytest.raises(ShapeError, match="bias_hidden has shape"):
        gru_predict(x, *weights, None, hidden[0])
    with pytest.raises(ShapeError, match="x has shape"):
        gru_predict(x[0], *weights)
    with pytest.raises(UsageError, match="float64"):
        gru_predict(x.double(), *(weight.double() for weight in weights))
    prediction = gru_predict(x, *weights)
    with pytest.raises(ShapeError, match="gates has shape"):
        gru_error(prediction.output, x, *weights, prediction.hiddens, prediction.gates[1:])
    with pytest.raises(UsageError, match="input_precision"):
        gru_error(prediction.output, x, *weights, *prediction[2:], input_precision="fast")
