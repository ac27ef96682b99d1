"""The recurrences of RNN, GRU and LSTM against their references, and the layers against torch's."""

import pytest
import torch
from closeness import assert_close
from layers import far_apart, strided
from recurrent import GRU, KINDS, as_tuple

from pccompile.errors import PCCompileError, ShapeError, UsageError
from pccompile.kernels import rnn_predict
from pccompile.kernels.launches import counting_launches
from pccompile.kernels.recurrences import Configuration


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def check_alike(expected, actual, ratio=None):
    for place, (right, result) in enumerate(zip(expected, actual, strict=True)):
        assert_close(f"result {place}", right, result, ratio)


def check_against_reference(kind, arguments, ratio=None):
    reference = kind.expected(*arguments)
    check_alike(reference, kind.recurrence(*arguments), ratio)
    sweep = kind.sweep(arguments, reference)
    expected = kind.error_reference(*sweep, *kind.options)
    check_alike(expected, kind.operator("_error")(*sweep, *kind.options, "ieee"), ratio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_recurrence_equals_the_reference(device, kind, dtype):
    check_against_reference(kind, kind.random(device, dtype=dtype))


def test_the_recurrence_equals_the_reference_in_bfloat16(device, kind):
    # States are rounded at every step: by truncation under the interpreter.
    check_against_reference(kind, kind.random(device, dtype=torch.bfloat16), ratio=3e-2)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 17, 33), (4, 1, 5), (0, 3, 4), (2, 0, 4)], ids=str)
def test_awkward_and_empty_shapes(device, kind, shape):
    check_against_reference(kind, kind.random(device, *shape))


def test_a_gru_without_biases(device):
    drive, weight, _, hidden = GRU.random(device)
    check_against_reference(GRU, (drive, weight, None, hidden))


def test_strides_are_followed(device, kind):
    check_against_reference(kind, [strided(tensor) for tensor in kind.random(device)])


def test_rows_of_the_weight_far_apart_are_addressed_with_64_bits(device, kind):
    drive, weight, *others = kind.random(device, 2, 3, 4, torch.float16)
    check_against_reference(kind, [drive, far_apart(weight), *others])


def test_samples_far_apart_are_addressed_with_64_bits(device, kind):
    drive, *others = kind.random(device, 1, 3, 4, torch.float16)
    check_against_reference(kind, [far_apart(drive[0])[None], *others])


@pytest.mark.parametrize("blocks", [(16, 16, 16), (32, 64, 16)], ids=str)
def test_any_tiles_give_the_same_and_every_element_is_written(device, kind, blocks):
    arguments = kind.random(device, batch=33, units=20)
    configuration = Configuration(*blocks, warps=4, stages=2)
    reference = kind.expected(*arguments)
    outputs = [torch.full_like(each, torch.nan) for each in reference]
    kind.launch(*arguments, *outputs, *kind.options, configuration=configuration)
    check_alike(reference, outputs)
    sweep = kind.sweep(arguments, reference, last=False)
    expected = kind.error_reference(*sweep, *kind.options)
    targets = [torch.full_like(each, torch.nan) for each in expected]
    kind.launch_error(*sweep, *targets, *kind.options, configuration=configuration)
    check_alike(expected, targets)


def layer_and_input(device, kind, steps=4, batch=5, inputs=6, units=7):
    """A layer, its input, and first states by argument name."""
    layer = kind.layer(inputs, units).to(device)
    x = torch.randn(steps, batch, inputs, device=device)
    return layer, x, {name: torch.randn(batch, units, device=device) for name in kind.states}


def parameters_of(kind, layer):
    return [parameter.detach() for parameter in kind.parameters(layer)]


def test_a_layer_and_every_gradient_equal_torchs(device, kind):
    layer, x, states = layer_and_input(device, kind)
    exact = kind.layer(6, 7, dtype=torch.float64, device=device)
    exact.load_state_dict(layer.state_dict())
    inputs = [tensor.double().requires_grad_() for tensor in (x, *states.values())]
    first = [state[None] for state in inputs[1:]]
    output, last = exact(inputs[0], first[0] if len(first) == 1 else tuple(first))
    expected = [output, *(state[0] for state in as_tuple(last))]
    errors = [torch.randn_like(each) for each in expected]
    torch.autograd.backward(expected, errors)

    leaves = [tensor.clone().requires_grad_() for tensor in (x, *states.values())]
    prediction = kind.predict(leaves[0], *kind.parameters(layer), **dict(zip(states, leaves[1:], strict=True)))
    actual = list(prediction[: len(expected)])
    torch.autograd.backward(actual, [each.float() for each in errors])
    for name, right, found in zip(prediction._fields, expected, actual, strict=False):
        assert_close(name, right, found, ratio=2e-6)
    for name, right, leaf in zip(("x", *states), inputs, leaves, strict=True):
        assert_close(f"gradient of {name}", right.grad, leaf.grad, ratio=2e-6)
    for (name, right), parameter in zip(exact.named_parameters(), layer.parameters(), strict=True):
        assert_close(f"gradient of {name}", right.grad, parameter.grad, ratio=2e-6)


def test_the_error_sweep_equals_autograd_in_three_launches(device, kind):
    layer, x, states = layer_and_input(device, kind)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *parameters_of(kind, layer))]
    weights, places = parameters_of(kind, layer)[:2], 1 + len(states)
    errors = [torch.randn(4, 5, 7, device=device), *(torch.randn_like(state) for state in states.values())]
    prediction = kind.predict(*leaves)
    torch.autograd.backward(list(prediction[:places]), errors)
    last = {f"{name}_error": error for name, error in zip(states, errors[1:], strict=True)}
    with counting_launches() as launches:
        sweep = kind.error(errors[0], x, *weights, *prediction[places:], **last, gain=-0.5)
    assert launches == {f"{kind.operation}_recurrence_error": 1, "linear_error": 2}
    assert_close("parent_error", leaves[0].grad, sweep.parent_error)
    for gradient, leaf in zip(sweep[places:], leaves[1:], strict=True):
        assert_close("gradient", -0.5 * leaf.grad, gradient)
    part = kind.error(errors[0], x, *weights, *prediction[places:], weight_gradient=False, bias_gradient=False)
    assert all(gradient is None for gradient in part[places:])


def test_results_repeat_bit_for_bit(device, kind):
    arguments = kind.random(device, steps=2)
    for first, second in zip(kind.recurrence(*arguments), kind.recurrence(*arguments), strict=True):
        assert torch.equal(first, second)


def test_the_operators_keep_their_contract(device, kind):
    arguments = kind.random(device, 2, 3, 4)
    leaves = [tensor.clone().requires_grad_() for tensor in arguments]
    torch.library.opcheck(kind.operator().default, (*leaves, *kind.options, "ieee"))
    sweep = kind.sweep(arguments, kind.recurrence(*arguments))
    torch.library.opcheck(kind.operator("_error").default, (*sweep, *kind.options, "ieee"))
    gains, sweep[1] = torch.randn(2, 2, kind.gates, device=device), None
    torch.library.opcheck(kind.operator("_learned_error").default, (*sweep, gains, *kind.options, "ieee"))


def test_what_gradients_read_has_a_gain_for_each_step_and_gate(device, kind):
    arguments = kind.random(device, batch=17, units=20)
    sweep = kind.sweep(arguments, kind.recurrence(*arguments))
    gains = torch.randn(2, 3, kind.gates, device=device)
    expected = kind.operator("_error")(*sweep, *kind.options, "ieee")
    drive_error, inputs, states, *first = kind.operator("_learned_error")(*sweep, gains, *kind.options, "ieee")
    for right, actual in zip((expected[0], *expected[-len(first) :]), (drive_error, *first), strict=True):
        assert torch.equal(right, actual)
    errors = expected[0], expected[-len(first) - 1]  # a GRU's differ
    for gain, error, scaled in zip(gains, errors, (inputs, states), strict=True):
        apart = error.unflatten(-1, (kind.gates, 20)) * gain[:, None, :, None]
        assert_close("scaled", apart.flatten(-2), scaled)


def test_a_second_derivative_is_refused(device, kind):
    layer, x, _ = layer_and_input(device, kind, steps=2)
    leaf = x.requires_grad_()
    output = kind.predict(leaf, *parameters_of(kind, layer)).output
    (first,) = torch.autograd.grad(output.sum(), leaf, create_graph=True)
    with pytest.raises(PCCompileError, match="create_graph"):
        first.sum().backward()


def test_refusals_name_the_argument(device, kind):
    layer, x, states = layer_and_input(device, kind)
    weights = parameters_of(kind, layer)[:2]
    with pytest.raises(ShapeError, match="hidden has shape"):
        kind.predict(x, *weights, **{**states, "hidden": states["hidden"][1:]})
    with pytest.raises(ShapeError, match="x has shape"):
        kind.predict(x[0], *weights)
    with pytest.raises(UsageError, match="float64"):
        kind.predict(x.double(), *(weight.double() for weight in weights))
    prediction = kind.predict(x, *weights)
    *kept, last = prediction[1 + len(states) :]
    with pytest.raises(ShapeError, match=f"{prediction._fields[-1]} has shape"):
        kind.error(prediction.output, x, *weights, *kept, last[1:])
    with pytest.raises(UsageError, match="input_precision"):
        kind.error(prediction.output, x, *weights, *kept, last, input_precision="fast")


def test_a_bias_of_the_hidden_states_that_does_not_fit_is_refused(device):
    layer, x, states = layer_and_input(device, GRU)
    with pytest.raises(ShapeError, match="bias_hidden has shape"):
        GRU.predict(x, *parameters_of(GRU, layer)[:2], None, states["hidden"][0])


def test_an_activation_that_an_rnn_does_not_have_is_refused(device):
    layer, x, _ = layer_and_input(device, KINDS["rnn tanh"])
    with pytest.raises(UsageError, match="activation='gelu'"):
        rnn_predict(x, layer.weight_ih_l0.detach(), layer.weight_hh_l0.detach(), activation="gelu")
