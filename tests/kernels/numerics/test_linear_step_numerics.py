"""linear_step against its reference."""

import pytest
import torch
from closeness import RATIO, assert_close
from layers import far_apart, random_layer, scattered, strided, transposed

from pccompile.errors import ShapeError, UsageError
from pccompile.kernels import ACTIVATIONS, linear_step, linear_step_into
from pccompile.kernels.linear_step.configurations import Tiled, Whole, outputs_at_a_time
from pccompile.kernels.linear_step.kernel import launch_linear_step
from pccompile.kernels.linear_step.reference import linear_step_reference

NAMES = ("error", "drive", "prediction")
NARROW = (35, 30, 20)  # (batch, in, out): the interpreter's tiles hold 32 inputs
WIDE = (35, 40, 33)
GROUPED = (35, 48, 100)  # of which the interpreter's cache does not hold the weight
SHAPES = pytest.mark.parametrize("shape", [NARROW, WIDE, GROUPED], ids=["narrow", "wide", "grouped"])


def arguments(layer):
    """The layer's error serves as its value."""
    return layer.error, layer.x, layer.weight, layer.bias, layer.activation


def check_against_reference(layer, ratio=None, **options):
    step = linear_step(*arguments(layer), prediction=True, **options)
    reference = linear_step_reference(*arguments(layer))
    for name, expected, actual in zip(NAMES, reference, step, strict=True):
        assert_close(name, expected, actual, ratio)


@SHAPES
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_step_equals_the_reference(device, activation, shape):
    check_against_reference(random_layer(device, shape, activation))


@SHAPES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_step_equals_the_reference_in_half_precision(device, activation, dtype, shape):
    # d is rounded after a sum in another order: now and then to a neighbour.
    check_against_reference(random_layer(device, shape, activation, dtype), ratio=2 * RATIO[dtype])


@SHAPES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_value_that_is_its_prediction_has_no_error_in_half_precision(device, dtype, shape):
    value, *rest = arguments(random_layer(device, shape, "tanh", dtype))
    predicted = linear_step(value, *rest, prediction=True).prediction
    step = linear_step(predicted, *rest, prediction=True)
    assert not step.error.any() and not step.drive.any()


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 60, 63), (63, 1, 60), (60, 63, 1), (64, 32, 96), (5, 0, 7), (5, 7, 0), (0, 5, 7), (5, 40, 0)],
)
def test_awkward_and_empty_shapes(device, shape):
    check_against_reference(random_layer(device, shape))


def test_tf32_is_an_option(device):
    check_against_reference(random_layer(device, WIDE, "tanh"), ratio=2e-3, input_precision="tf32")


@SHAPES
def test_strides_are_followed_and_the_bias_may_be_missing(device, shape):
    layer = scattered(random_layer(device, shape))
    check_against_reference(layer)
    value, x, weight, _, activation = arguments(layer)
    reference = linear_step_reference(value, x, weight, None, activation)
    for expected, actual in zip(reference[:2], linear_step(value, x, weight, None, activation), strict=False):
        assert_close("without a bias", expected, actual)


def test_rows_far_apart_are_addressed_with_64_bits(device):
    value, x, weight, bias, activation = arguments(random_layer(device, (3, 4, 5), dtype=torch.float16))
    reference = linear_step_reference(value, x, weight, bias, activation)
    step = linear_step(value, x, far_apart(weight), bias, activation)
    assert_close("error", reference[0], step.error)
    assert_close("drive", reference[1], step.drive, 2e-3)


@SHAPES
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_drive_that_exists_is_overwritten_or_added_to(device, accumulate, shape):
    layer = random_layer(device, shape)
    before = torch.randn_like(layer.x)
    error, drive = torch.full_like(layer.error, torch.nan), strided(transposed(before))
    linear_step_into(*arguments(layer), error=error, drive=drive, accumulate=accumulate)
    reference = linear_step_reference(*arguments(layer))
    assert_close("error", reference[0], error)
    assert_close("drive", before + reference[1] if accumulate else reference[1], drive)


@pytest.mark.parametrize(
    ("configuration", "group_out"),
    [(Whole(16, 16, 128, 4, 2), None), (Tiled(16, 16, 64, 16, 4, 2), None), (Tiled(16, 16, 32, 16, 4, 2), 16)],
    ids=["whole", "tiled", "grouped"],
)
def test_every_element_is_written_and_nothing_else_whatever_the_tiles(device, configuration, group_out):
    layer = random_layer(device, WIDE)
    batch, in_features, out = WIDE
    buffers = [torch.full((batch + 2, width + 4), torch.nan, device=device) for width in (out, in_features, out)]
    outputs = [buffer[1:-1, 2:-2] for buffer in buffers]
    options = {"configuration": configuration, "group_out": group_out}
    launch_linear_step(*arguments(layer)[:4], *outputs, layer.activation, **options)
    for name, expected, actual, buffer in zip(
        NAMES, linear_step_reference(*arguments(layer)), outputs, buffers, strict=True
    ):
        assert_close(name, expected, actual)
        assert int(buffer.isnan().sum()) == buffer.numel() - actual.numel()


def test_a_weight_that_the_cache_does_not_hold_is_taken_in_groups(device):
    batch, in_features, out = GROUPED
    tiles = Tiled(32, 32, 32, 32, 1, 1)
    assert outputs_at_a_time("interpreter", tiles, batch, out, in_features, 4) == 32
    assert outputs_at_a_time("interpreter", tiles, WIDE[0], WIDE[2], WIDE[1], 4) == WIDE[2]


@SHAPES
def test_results_repeat_bit_for_bit(device, shape):
    layer = random_layer(device, shape)
    first, second = (linear_step(*arguments(layer)) for _ in range(2))
    assert torch.equal(first.error, second.error) and torch.equal(first.drive, second.drive)
    assert first.prediction is None


def test_refusals_name_the_argument(device):
    layer = random_layer(device, (5, 4, 3))
    value, x, weight, bias, _ = arguments(layer)
    refused = [
        (UsageError, "float64", (value.double(), x.double(), weight.double())),
        (ShapeError, "x is torch.float16", (value, x.half(), weight)),
        (ShapeError, "weight is on meta", (value, x, weight.to("meta"))),
        (ShapeError, "value has shape", (value[:, 1:], x, weight)),
        (ShapeError, "value has shape", (value[0], x, weight)),
        (ShapeError, "x has shape", (value, x[1:], weight)),
        (ShapeError, "bias has shape", (value, x, weight, bias[1:])),
        (UsageError, "'swish'", (value, x, weight, bias, "swish")),
    ]
    for kind, words, given in refused:
        with pytest.raises(kind, match=words):
            linear_step(*given)
    with pytest.raises(ShapeError, match="drive has shape"):
        linear_step_into(value, x, weight, error=value, drive=value)
    with pytest.raises(UsageError, match="input_precision"):
        linear_step(value, x, weight, input_precision="fast")
