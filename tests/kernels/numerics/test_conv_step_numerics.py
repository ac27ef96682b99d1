"""conv_step against its reference, and a sweep of its steps against autograd."""

from dataclasses import replace

import pytest
import torch
from closeness import assert_close, assert_same_wherever_rows_lie
from convolutions import channels_last, random_convolution, scattered
from layers import far_apart
from torch.nn import functional

from pccompile.errors import ShapeError, UsageError
from pccompile.kernels import conv_predict, conv_step
from pccompile.kernels.conv_step.configurations import CONFIGURATIONS, bands_for
from pccompile.kernels.conv_step.kernel import launch_conv_step
from pccompile.kernels.conv_step.reference import conv_step_reference
from pccompile.kernels.convolution_geometry import geometry_of

GEOMETRIES = (
    "padded",
    "strided",
    "stride and dilation",
    "stride over the kernel",
    "groups",
    "depthwise",
    "maximum with gaps",
    "average with gaps",
)


def arguments(layer):
    """A step's: the layer's error serves as this vertex's value."""
    return layer.x, layer.weight, layer.bias, layer.error, layer.activation


def check_against_reference(layer, **options):
    step = conv_step(*arguments(layer), **layer.options, **options)
    error, residual, argmax, target = conv_step_reference(*arguments(layer), **layer.options, **options)
    assert_close("error", error, step.error)
    if residual is None:
        assert step.residual is None
    else:
        assert_close("residual", residual, step.residual)
    assert (argmax is None and step.argmax is None) or torch.equal(argmax, step.argmax)
    moves = "parent_error" in options
    assert (step.feedback is None) == moves and (step.moved is None) != moves
    # What is carried back is the rounded error: in half precision its rounding may differ by one unit.
    assert_close("moved" if moves else "feedback", target, step.moved if moves else step.feedback)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_any_geometry(device, geometry):
    check_against_reference(random_convolution(device, geometry))


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
def test_activations_of_every_kind(device, activation):
    check_against_reference(random_convolution(device, activation=activation))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(device, dtype):
    check_against_reference(random_convolution(device, "strided", dtype=dtype))


def test_a_value_that_is_its_prediction_has_no_error_in_half_precision(device):
    layer = random_convolution(device, "maximum", dtype=torch.float16)
    x, weight, bias, _, activation = arguments(layer)
    predicted = conv_predict(x, weight, bias, activation, **layer.options).output
    step = conv_step(x, weight, bias, predicted, activation, **layer.options)
    assert (step.error == 0).float().mean() > 0.9  # the sums may differ in their last bit, and so may their rounding


@pytest.mark.parametrize(("siblings", "move"), [(False, True), (True, False), (True, True)])
def test_the_parent_is_moved_by_its_error_and_all_its_children(device, siblings, move):
    layer = random_convolution(device, "stride over the kernel")
    others, own = torch.randn_like(layer.x), torch.randn_like(layer.x)
    options = {"siblings": others} if siblings else {}
    check_against_reference(layer, **options, **({"parent_error": own, "step_size": 0.3} if move else {}))


def test_strides_are_followed_and_channels_last_is_kept(device):
    check_against_reference(scattered(random_convolution(device, "strided")))
    layer = channels_last(random_convolution(device, "padded"))
    check_against_reference(layer)
    step = conv_step(*arguments(layer), **layer.options)
    for tensor in (step.error, step.residual, step.feedback):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_images_far_apart_are_addressed_with_64_bits(device):
    layer = random_convolution(device, "strided", dtype=torch.float16)
    check_against_reference(replace(layer, x=far_apart(layer.x)))


def test_feedback_may_be_left_out_and_the_batch_empty(device):
    layer = random_convolution(device)
    step = conv_step(*arguments(layer), **layer.options, feedback=False)
    assert step.feedback is None and step.moved is None
    assert torch.equal(step.error, conv_step(*arguments(layer), **layer.options).error)
    empty = replace(layer, x=layer.x[:0], error=layer.error[:0])
    assert conv_step(*arguments(empty), **layer.options).feedback.shape == empty.x.shape


@pytest.mark.parametrize(
    ("geometry", "bands"), [("padded", 5), ("stride and dilation", 2), ("maximum of a strided", 3), ("depthwise", 2)]
)
def test_bands_of_a_sample_give_the_same_as_the_whole(device, geometry, bands):
    layer = random_convolution(device, geometry)
    found = []
    for count in (1, bands):
        targets = [torch.full_like(tensor, torch.nan) for tensor in (layer.error, layer.residual, layer.x)]
        argmax = None if layer.argmax is None else torch.full_like(layer.argmax, 99)
        chosen = CONFIGURATIONS["interpreter"]["ieee"]["direct" if layer.geometry.direct(layer.weight) else "product"]
        launch_conv_step(
            layer.x,
            layer.weight,
            layer.bias,
            layer.error,
            *targets[:2],
            argmax,
            targets[2],
            layer.geometry,
            "gelu",
            configuration=replace(chosen, bands=count, warps=4),
        )
        found.append([*targets, *([] if argmax is None else [argmax])])
    for one, several in zip(*found, strict=True):
        assert one.isfinite().all()
        assert_same_wherever_rows_lie("result", one, several)


def test_bands_fill_the_device_and_are_not_too_narrow():
    x, weight = torch.empty(4, 3, 32, 32, device="meta"), torch.empty(8, 3, 3, 3, device="meta")
    plan = geometry_of("test", x, weight, [1, 1], [1, 1], [1, 1], 1, "none", [1, 1, 1, 1])
    assert bands_for("sm_90", plan, batch=256, lines=32) == 1
    assert bands_for("sm_90", plan, batch=33, lines=32) == 4
    assert bands_for("sm_90", plan, batch=1, lines=32) == 8


def test_steps_descend_the_energy(device):
    """A chain x0 -> x1 -> x2 with x0 and x2 clamped: x1 moves down the energy's gradient, layer by layer."""
    torch.manual_seed(3)
    x0 = torch.randn(2, 3, 6, 5, device=device)
    weights = [torch.randn(4, 3, 3, 3, device=device) / 5, torch.randn(5, 4, 3, 3, device=device) / 6]
    x1, x2 = torch.randn(2, 4, 6, 5, device=device), torch.randn(2, 5, 3, 3, device=device)

    def energy(value):
        first = value - torch.tanh(functional.conv2d(x0.double(), weights[0].double(), padding=1))
        second = x2.double() - functional.silu(functional.conv2d(value, weights[1].double(), stride=2, padding=1))
        return (first.square().sum() + second.square().sum()) / 2

    exact = x1.double()
    for _ in range(2):
        exact = exact.detach().requires_grad_()
        exact = exact - 0.2 * torch.autograd.grad(energy(exact), exact)[0]
        below = conv_step(x0, weights[0], None, x1, "tanh", padding=1, feedback=False)
        above = conv_step(
            x1, weights[1], None, x2, "silu", stride=2, padding=1, parent_error=below.error, step_size=0.2
        )
        x1 = above.moved
    assert_close("value", exact.detach(), x1)


def test_refusals_name_the_argument(device):
    layer = random_convolution(device)
    x, weight, bias, value, activation = arguments(layer)
    refused = [
        (ShapeError, "value has shape", (x, weight, bias, value[1:], activation), {}),
        (ShapeError, "bias has shape", (x, weight, bias[1:], value, activation), {}),
        (ShapeError, "siblings has shape", (x, weight, bias, value, activation), {"siblings": value}),
        (ShapeError, "parent_error is torch.float16", (x, weight, bias, value), {"parent_error": x.half()}),
        (ShapeError, "feedback=False", (x, weight, bias, value), {"feedback": False, "siblings": x}),
        (UsageError, "'swish'", (x, weight, bias, value, "swish"), {}),
        (UsageError, "input_precision", (x, weight, bias, value), {"input_precision": "fast"}),
    ]
    for kind, words, given, options in refused:
        with pytest.raises(kind, match=words):
            conv_step(*given, **layer.options, **options)
