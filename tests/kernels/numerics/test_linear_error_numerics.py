"""linear_error against its reference; its derivatives are compared with autograd's through linear_predict."""

import itertools
from dataclasses import replace

import pytest
import torch
from closeness import assert_close
from layers import far_apart, random_layer, scattered, strided, transposed

from pccompile.errors import ShapeError, UsageError
from pccompile.kernels import ACTIVATIONS, linear_error, linear_error_into
from pccompile.kernels.linear_error.configurations import Configuration
from pccompile.kernels.linear_error.kernel import launch_linear_error
from pccompile.kernels.linear_error.reference import linear_error_reference

NAMES = ("parent_error", "weight_gradient", "bias_gradient")
SMALL = (20, 40, 33)  # of two tiles of inputs, and two of outputs


def check_against_reference(layer, gain=1.0, **options):
    sweep = linear_error(*layer.sweep, gain=gain, **options)
    for name, reference, actual in zip(NAMES, linear_error_reference(*layer.sweep, gain=gain), sweep, strict=True):
        assert_close(name, reference, actual)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_sweep_equals_the_reference(device, activation):
    check_against_reference(random_layer(device, activation=activation))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_sweep_equals_the_reference_in_half_precision(device, activation, dtype):
    check_against_reference(random_layer(device, SMALL, activation, dtype))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 60, 63), (63, 1, 60), (60, 63, 1), (5, 0, 7), (5, 7, 0), (0, 5, 7)])
def test_awkward_and_empty_shapes(device, shape):
    check_against_reference(random_layer(device, shape))


def test_the_gain_scales_the_gradients_and_not_the_error(device):
    layer = random_layer(device, SMALL)
    check_against_reference(layer, gain=-0.37)
    assert_close(
        "parent_error", linear_error(*layer.sweep).parent_error, linear_error(*layer.sweep, gain=5).parent_error
    )


def test_a_negative_slope_of_ones_own(device):
    layer = random_layer(device, SMALL, "leaky_relu")
    sweep = linear_error(*layer.sweep, negative_slope=0.3)
    for name, reference, actual in zip(
        NAMES, linear_error_reference(*layer.sweep, negative_slope=0.3), sweep, strict=True
    ):
        assert_close(name, reference, actual)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3))[:-1], ids=str)
def test_what_is_left_out_changes_nothing_else(device, wanted):
    layer = random_layer(device, SMALL)
    some = linear_error(*layer.sweep, **dict(zip(NAMES, wanted, strict=True)))
    for want, part, whole in zip(wanted, some, linear_error(*layer.sweep), strict=True):
        assert torch.equal(part, whole) if want else part is None


@pytest.mark.parametrize("accumulate", [False, True])
def test_targets_are_overwritten_or_added_to_and_nothing_beside_them_is_touched(device, accumulate):
    layer = random_layer(device, SMALL)
    references = linear_error_reference(*layer.sweep, gain=0.5)
    before = [torch.randn_like(reference) for reference in references]
    # Every second element of NaN-filled buffers; what is overwritten starts from NaN as well.
    targets = [strided(tensor if accumulate else torch.full_like(tensor, torch.nan)) for tensor in before]
    flags = {f"accumulate_{name}": accumulate for name in ("parent", "weight", "bias")}
    linear_error_into(*layer.sweep, **dict(zip(NAMES, targets, strict=True)), **flags, gain=0.5)
    for name, reference, start, target in zip(NAMES, references, before, targets, strict=True):
        assert_close(name, reference + start if accumulate else reference, target)
        buffer = target._base
        assert int(buffer.isnan().sum()) == buffer.numel() - target.numel()


@pytest.mark.parametrize("which", range(3))
def test_each_target_accumulates_on_its_own(device, which):
    layer = random_layer(device, SMALL, "tanh")
    references = linear_error_reference(*layer.sweep)
    targets = [torch.full_like(reference, 3.0) for reference in references]
    flag = ("accumulate_parent", "accumulate_weight", "accumulate_bias")[which]
    linear_error_into(*layer.sweep, **dict(zip(NAMES, targets, strict=True)), **{flag: True})
    for index, (reference, target) in enumerate(zip(references, targets, strict=True)):
        assert_close(NAMES[index], reference + 3.0 if index == which else reference, target)


def test_an_empty_batch_gives_zero_gradients_and_leaves_accumulated_ones(device):
    layer = random_layer(device, (0, 5, 7))
    assert not linear_error(*layer.sweep).weight_gradient.any()
    gradient = torch.ones(7, 5, device=device)
    linear_error_into(*layer.sweep, weight_gradient=gradient, accumulate_weight=True)
    assert (gradient == 1).all()


def test_accumulation_rounds_once(device):
    layer = random_layer(device, SMALL, dtype=torch.float16)
    target = torch.full_like(layer.x, 100.0)
    linear_error_into(*layer.sweep, parent_error=target, accumulate_parent=True)
    exact = linear_error_reference(*(t.float() if isinstance(t, torch.Tensor) else t for t in layer.sweep))[0] + 100
    assert_close("parent_error", exact, target, ratio=3e-4)


def test_strides_are_followed(device):
    check_against_reference(scattered(random_layer(device)))


def test_leading_dimensions_are_kept(device):
    layer = random_layer(device, (12, 10, 9))
    shaped = replace(
        layer,
        x=layer.x.reshape(3, 4, 10),
        error=transposed(layer.error.reshape(3, 4, 9)),
        residual=layer.residual.reshape(3, 4, 9),
    )
    check_against_reference(shaped)


def test_rows_far_apart_are_addressed_with_64_bits(device):
    layer = random_layer(device, (3, 4, 5), dtype=torch.float16)
    far = replace(layer, x=far_apart(layer.x), error=far_apart(layer.error))
    reference = linear_error_reference(*layer.sweep)
    for name, expected, actual in zip(NAMES, reference, linear_error(*far.sweep), strict=True):
        assert_close(name, expected, actual)


def test_tf32_is_an_option(device):
    layer = random_layer(device)
    sweep = linear_error(*layer.sweep, input_precision="tf32")
    for name, reference, actual in zip(NAMES, linear_error_reference(*layer.sweep), sweep, strict=True):
        assert_close(name, reference, actual, ratio=2e-3)


@pytest.mark.parametrize("blocks", [(16, 64, 32, 32, 16, 64), (64, 32, 16, 16, 64, 32)], ids=str)
def test_any_tiles_give_the_same(device, blocks):
    layer = random_layer(device)
    references = linear_error_reference(*layer.sweep)
    targets = [torch.full_like(reference, torch.nan) for reference in references]
    configuration = Configuration(*blocks, warps=4, stages=2, group=2)
    launch_linear_error(*layer.sweep, **dict(zip(NAMES, targets, strict=True)), configuration=configuration)
    for name, reference, target in zip(NAMES, references, targets, strict=True):
        assert_close(name, reference, target)


def test_results_repeat_bit_for_bit(device):
    layer = random_layer(device)
    for first, second in zip(linear_error(*layer.sweep), linear_error(*layer.sweep), strict=True):
        assert torch.equal(first, second)


def test_refusals_name_the_argument(device):
    layer = random_layer(device, (5, 4, 3))
    error, residual, x, weight, _ = layer.sweep
    refused = [
        (UsageError, "float64", (error.double(), None, x.double(), weight.double())),
        (ShapeError, "residual is torch.float16", (error, residual.half(), x, weight, "gelu")),
        (ShapeError, "weight is on meta", (error, None, x, weight.to("meta"))),
        (ShapeError, "gelu needs a residual", (error, None, x, weight, "gelu")),
        (ShapeError, "error has shape", (error[:, 1:], None, x, weight)),
        (ShapeError, "x has shape", (error, None, x[1:], weight)),
        (ShapeError, "residual has shape", (error, residual[1:], x, weight, "gelu")),
        (UsageError, "'swish'", (error, None, x, weight, "swish")),
    ]
    for kind, words, arguments in refused:
        with pytest.raises(kind, match=words):
            linear_error(*arguments)
    with pytest.raises(ShapeError, match="bias_gradient has shape"):
        linear_error_into(*layer.sweep, bias_gradient=x)
    with pytest.raises(UsageError, match="input_precision"):
        linear_error(*layer.sweep, input_precision="fast")
