"""conv_error against its reference; its derivatives are compared with autograd's through conv_predict."""

import itertools
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from closeness import assert_close
from convolutions import GEOMETRIES, POOLED, channels_last, random_convolution, scattered
from layers import far_apart, strided

from pccompile.errors import ShapeError, UsageError
from pccompile.kernels import ACTIVATIONS, Pool, conv_error, conv_error_into
from pccompile.kernels.conv_error.configurations import Configuration
from pccompile.kernels.conv_error.kernel import launch_conv_error
from pccompile.kernels.conv_error.reference import conv_error_reference

NAMES = ("parent_error", "weight_gradient", "bias_gradient")


def sweep(layer, **options):
    return conv_error(*layer.sweep, **layer.options, **options)


def references(layer, **options):
    return conv_error_reference(*layer.sweep, **layer.options, **options)


def check_against_reference(layer, **options):
    for name, reference, actual in zip(NAMES, references(layer), sweep(layer, **options), strict=True):
        assert_close(name, reference, actual)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_any_geometry(device, geometry):
    check_against_reference(random_convolution(device, geometry))


@pytest.mark.parametrize("geometry", POOLED)
def test_any_pooling_without_overlap(device, geometry):
    check_against_reference(random_convolution(device, geometry, "silu"))


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
def test_activations_of_every_kind(device, activation):
    check_against_reference(random_convolution(device, activation=activation))


def test_every_activation_has_a_slope(device):
    for activation in ACTIVATIONS:
        check_against_reference(random_convolution(device, "one pixel", activation))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("geometry", ["padded", "maximum of a strided"])
def test_half_precision(device, geometry, dtype):
    check_against_reference(random_convolution(device, geometry, dtype=dtype))


def test_the_gain_scales_the_gradients_and_not_the_error(device):
    layer = random_convolution(device)
    expected = references(layer, gain=-0.37)
    for name, reference, actual in zip(NAMES, expected, sweep(layer, gain=-0.37), strict=True):
        assert_close(name, reference, actual)
    assert_close("parent_error", references(layer)[0], sweep(layer, gain=5).parent_error)


def test_what_is_left_out_changes_nothing_else(device):
    layer = random_convolution(device, "stride over the kernel")
    everything = sweep(layer)
    for wanted in itertools.product([False, True], repeat=3):
        some = sweep(layer, **dict(zip(NAMES, wanted, strict=True)))
        for want, part, whole in zip(wanted, some, everything, strict=True):
            assert torch.equal(part, whole) if want else part is None


@pytest.mark.parametrize(("geometry", "accumulate"), [("padded", True), ("stride over the kernel", False)])
def test_targets_are_overwritten_or_added_to_and_nothing_beside_them_is_touched(device, geometry, accumulate):
    layer = random_convolution(device, geometry)
    expected = references(layer, gain=0.5)
    before = [torch.randn_like(reference) for reference in expected]
    # Every second element of NaN-filled buffers; what is overwritten starts from NaN as well.
    targets = [strided(tensor if accumulate else torch.full_like(tensor, torch.nan)) for tensor in before]
    flags = {f"accumulate_{name}": accumulate for name in ("parent", "weight", "bias")}
    conv_error_into(*layer.sweep, **layer.options, **dict(zip(NAMES, targets, strict=True)), **flags, gain=0.5)
    for name, reference, start, target in zip(NAMES, expected, before, targets, strict=True):
        assert_close(name, reference + start if accumulate else reference, target)
        assert int(target._base.isnan().sum()) == target._base.numel() - target.numel()


@pytest.mark.parametrize("flag", ["accumulate_parent", "accumulate_weight", "accumulate_bias"])
def test_each_target_accumulates_on_its_own(device, flag):
    layer = random_convolution(device, "one pixel", "tanh")
    expected = references(layer)
    targets = [torch.full_like(reference, 3.0) for reference in expected]
    conv_error_into(*layer.sweep, **layer.options, **dict(zip(NAMES, targets, strict=True)), **{flag: True})
    for name, reference, target in zip(NAMES, expected, targets, strict=True):
        assert_close(name, reference + 3.0 if name.startswith(flag[11:]) else reference, target)


def test_an_empty_batch_gives_zero_gradients(device):
    layer = random_convolution(device)
    empty = replace(layer, x=layer.x[:0], error=layer.error[:0], residual=layer.residual[:0])
    found = sweep(empty)
    assert found.parent_error.shape == empty.x.shape
    assert not found.weight_gradient.any() and not found.bias_gradient.any()


@pytest.mark.parametrize("geometry", ["strided", "average"])
def test_strides_are_followed(device, geometry):
    check_against_reference(scattered(random_convolution(device, geometry)))


def test_channels_last_is_kept(device):
    layer = channels_last(random_convolution(device, "maximum with gaps"))
    check_against_reference(layer)
    assert sweep(layer).parent_error.is_contiguous(memory_format=torch.channels_last)


def test_images_far_apart_are_addressed_with_64_bits(device):
    layer = random_convolution(device, "strided", dtype=torch.float16)
    check_against_reference(replace(layer, x=far_apart(layer.x)))


def test_tf32_is_an_option(device):
    layer = random_convolution(device)
    for name, reference, actual in zip(NAMES, references(layer), sweep(layer, input_precision="tf32"), strict=True):
        assert_close(name, reference, actual, ratio=2e-3)


@pytest.mark.parametrize(("geometry", "rows", "accumulate"), [("padded", 16, False), ("narrow groups", 4, True)])
def test_programs_may_share_the_sum_of_a_tile_of_gradients(device, geometry, rows, accumulate, monkeypatch):
    # Two launches share their counters, as on a stream: the first has to leave them zero.
    counters = torch.zeros(64, dtype=torch.int32, device=device)
    kernel = import_module("pccompile.kernels.conv_error.kernel")
    monkeypatch.setattr(kernel, "arrival_counters", lambda *_: counters)
    layer = random_convolution(device, geometry)
    expected = references(layer, gain=2.0)[1:]
    configuration = Configuration(16, 16, 32, 16, 64, rows, warps=4, stages=2, splits=3)
    found = []
    for _ in range(2):
        targets = [torch.ones_like(r) if accumulate else torch.full_like(r, torch.nan) for r in expected]
        launch_conv_error(
            layer.error,
            layer.residual,
            None,
            layer.x,
            layer.weight,
            layer.geometry,
            "gelu",
            **dict(zip(NAMES[1:], targets, strict=True)),
            accumulate_weight=accumulate,
            accumulate_bias=accumulate,
            gain=2.0,
            configuration=configuration,
        )
        found.append(targets)
    for name, reference, first, second in zip(NAMES[1:], expected, *found, strict=True):
        assert_close(name, reference + 1 if accumulate else reference, first)
        assert torch.equal(first, second)


def test_refusals_name_the_argument(device):
    layer = random_convolution(device)
    error, residual, _, x, weight, _ = layer.sweep
    options = {"padding": 1}
    refused = [
        (UsageError, "float64", (error.double(), None, None, x.double(), weight.double()), options),
        (ShapeError, "residual is torch.float16", (error, residual.half(), None, x, weight, "gelu"), options),
        (ShapeError, "gelu needs a residual", (error, None, None, x, weight, "gelu"), options),
        (ShapeError, "error has shape", (error, residual, None, x, weight, "gelu"), {}),
        (ShapeError, "residual has shape", (error, residual[1:], None, x, weight, "gelu"), options),
        (ShapeError, "the argmax is", (error, residual, error.to(torch.int8), x, weight, "gelu"), options),
        (ShapeError, "argmax has shape", (error, None, error, x, weight), options | {"pool": Pool("max", 2)}),
        (UsageError, "'swish'", (error, None, None, x, weight, "swish"), options),
        (UsageError, "dilation=", (error, None, None, x, weight), {"dilation": -1}),
    ]
    for kind, words, arguments, given in refused:
        if "argmax has shape" in words:
            arguments = (error[..., :3, :2], None, error, x, weight)
        with pytest.raises(kind, match=words):
            conv_error(*arguments, **given)
    with pytest.raises(ShapeError, match="bias_gradient has shape"):
        conv_error_into(*layer.sweep, **layer.options, bias_gradient=x)
    with pytest.raises(UsageError, match="input_precision"):
        sweep(layer, input_precision="fast")
