"""network_sweep against its reference, and both against the compiled program."""

from dataclasses import replace
from importlib import import_module
from itertools import chain, cycle

import pytest
import torch
from closeness import assert_close, assert_same_wherever_rows_lie
from layers import far_apart
from random_networks import NETWORKS, random_network

from pccompile.errors import DoubleBackwardError, ShapeError, UsageError
from pccompile.kernels import (
    ACTIVATIONS,
    NetworkLayer,
    counting_launches,
    network_gradients,
    network_sweep,
    strict_sweep,
)
from pccompile.kernels.network_sweep.configurations import Configuration
from pccompile.kernels.network_sweep.launch import launch_network_gradients, launch_network_sweep
from pccompile.kernels.network_sweep.layout import layout_of
from pccompile.kernels.network_sweep.reference import network_sweep_reference
from pccompile.kernels.strict_sweep.launch import Settings, empty_buffers

OPTIONS = {"steps": 2, "step_size": 0.4}
# An error is the difference of a value and its prediction, which are larger: it has fewer digits than they.
RATIO = {
    torch.float32: {"values": 1e-6, "energies": 1e-6, "others": 1e-4},
    torch.bfloat16: {"values": 2e-2, "energies": 2e-2, "others": 2e-1},
    torch.float16: {"values": 1e-3, "energies": 1e-3, "others": 3e-2},
}
LISTS = ("values", "errors", "weight_gradients", "bias_gradients")


def check_against_reference(network, reference_network=None, precision="ieee", **options):
    options = OPTIONS | options
    precisions = {"input_precision": precision, "convolution_precision": precision}
    sweep = network_sweep(*network.arguments, energies=True, **precisions, **options)
    reference = network_sweep_reference(*(reference_network or network.double()).arguments, **options)
    allowed = RATIO[torch.float16 if precision == "tf32" else network.x.dtype]
    assert_close("energies", reference.energies, sweep.energies, allowed["energies"])
    for name in LISTS:
        for layer, (expected, actual) in enumerate(
            zip(getattr(reference, name), getattr(sweep, name), strict=True), start=1
        ):
            assert_close(f"{name} of layer {layer}", expected, actual, allowed.get(name, allowed["others"]))
    return sweep


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "pooled at the end"])
def test_any_network(device, name):
    check_against_reference(random_network(device, name))


@pytest.mark.parametrize(
    ("loss", "free_output", "learn_errors", "momentum"),
    [
        ("cross_entropy", False, "previous", 0.9),
        ("squared_error", False, "current", 0.9),
        ("squared_error", False, "previous", 0.0),
        ("cross_entropy", True, "current", 0.0),
        ("cross_entropy", True, "previous", 0.5),
        ("squared_error", True, "current", 0.5),
    ],
)
def test_every_option(device, loss, free_output, learn_errors, momentum):
    network = random_network(device, "small MNIST CNN", loss, batch=2)
    check_against_reference(
        network,
        loss=loss,
        free_output=free_output,
        learn_errors=learn_errors,
        momentum=momentum,
        loss_factor=0.7,
        gradient_factor=-0.3,
    )


def test_an_output_with_a_free_value_may_pool(device):
    check_against_reference(random_network(device, "pooled at the end"), free_output=True, momentum=0.5)


def test_a_single_layer_with_a_free_output(device):
    network = random_network(device, "stride over the kernel, a convolution at the end")
    single = replace(network, x=network.x[:, :, :, :5], layers=network.layers[:1], target=network.target % 5)
    check_against_reference(single, free_output=True)


@pytest.mark.parametrize(("activation", "pool"), zip(ACTIVATIONS, cycle(["max", "average"]), strict=False))
def test_every_activation_under_a_pooling(device, activation, pool):
    network = random_network(device, "pooled at the end", "squared_error", batch=1)
    first = replace(network.layers[1], weight=network.layers[1].weight[:, :2], activation=activation, pool=pool)
    last = NetworkLayer(network.layers[0].weight, None, activation)
    target = torch.full((1, 3), 0.5, device=device)
    check_against_reference(
        replace(network, layers=[first, last], target=target), loss="squared_error", negative_slope=0.2
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(device, dtype):
    network = random_network(device, "tiny", dtype=dtype)
    check_against_reference(network, step_size=0.5, steps=3)


def test_tf32_is_an_option(device):
    check_against_reference(random_network(device, "tiny"), precision="tf32", step_size=0.5)


def test_strides_are_followed_and_biases_may_be_missing(device):
    network = random_network(device, "tiny", bias=False)
    last = network.x.contiguous(memory_format=torch.channels_last)
    check_against_reference(replace(network, x=last))
    check_against_reference(random_network(device, "tiny", batch=1).scattered())


def test_images_far_apart_are_addressed_with_64_bits(device):
    network = random_network(device, "tiny", dtype=torch.float16, batch=3)
    check_against_reference(replace(network, x=far_apart(network.x)), network.double(), step_size=0.5)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_whole_sweep_is_one_launch_and_all_gradients_another(device, steps):
    network = random_network(device, "one pixel")
    with counting_launches() as launches:
        network_sweep(*network.arguments, steps=steps, step_size=0.1)
    assert launches == {"network_sweep": 1, "network_gradients": 1}


def test_an_empty_batch_has_gradients_of_zero(device):
    network = random_network(device, "tiny", batch=0)
    sweep = network_sweep(*network.arguments, **OPTIONS, energies=True)
    assert [value.shape for value in sweep.values] == [(0, 2, 3, 2), (0, 3)]
    assert sweep.energies.shape == (3, 0)
    assert not any(gradient.any() for gradient in (*sweep.weight_gradients, *sweep.bias_gradients))


def test_ignored_samples_have_no_loss_and_are_not_in_the_mean(device):
    network = random_network(device, "tiny")
    network.target[1] = -100
    check_against_reference(network, averaged=True, loss_factor=5.0)


@pytest.mark.parametrize(("samples", "blocks"), [(1, (16, 16, 16)), (4, (32, 16, 32)), (2, (64, 64, 16))], ids=str)
def test_every_element_is_written_and_nothing_depends_on_who_owns_a_sample(device, samples, blocks):
    network = random_network(device, "maximum with gaps", batch=5)
    settings = Settings("cross_entropy", True, "current", True, 2, 0.2, 0.9, 1.0, -100, 0.01, "ieee")
    layout = layout_of(network.x.shape[1:], network.layers, True)
    buffers = empty_buffers(network.x, layout.columns, settings, layout.drive_columns)
    for buffer in buffers:
        buffer.fill_(torch.nan)
    configuration = Configuration(*blocks, warps=4, stages=2)
    launch_network_sweep(*network.arguments, settings, "ieee", buffers, samples, configuration)
    assert not any(buffer.isnan().any() for buffer in buffers)
    options = {"steps": 2, "step_size": 0.2, "momentum": 0.9, "free_output": True}
    reference = network_sweep_reference(*network.double().arguments, **options)
    assert_close("energies", reference.energies, buffers.energies)
    for name, ratio in (("values", 1e-6), ("errors", 1e-4)):
        for place, expected in zip(layout.places, getattr(reference, name), strict=True):
            assert_close(name, expected.flatten(1), getattr(buffers, name).narrow(1, place.own, place.width), ratio)
    gradients = torch.full((layout.gradients,), torch.nan, device=device)
    swept = network.x, buffers.values, buffers.drives, network.layers
    launch_network_gradients(*swept, gradients, -1.0, None, "ieee", "ieee")
    assert not gradients.isnan().any()


def test_a_sample_does_not_depend_on_its_batch_and_results_repeat(device):
    network = random_network(device, "tiny")
    whole = network_sweep(*network.arguments, **OPTIONS)
    part = network_sweep(network.x[3:], network.target[3:], network.layers, **OPTIONS)
    for one, other in zip(whole.values, part.values, strict=True):
        assert_same_wherever_rows_lie("value", one[3:], other)
    again = network_sweep(*network.arguments, **OPTIONS)
    assert all(map(torch.equal, whole.weight_gradients, again.weight_gradients))


def test_sums_that_programs_share_are_added_in_order(device, monkeypatch):
    network = random_network(device, "tiny")
    expected = network_sweep(*network.arguments, **OPTIONS)
    launch = import_module("pccompile.kernels.network_sweep.launch")
    monkeypatch.setattr(launch, "splits_for", lambda *sizes: 3)
    shared = [network_sweep(*network.arguments, **OPTIONS) for _ in range(2)]
    for ours, theirs, again in zip(
        *(chain(each.weight_gradients, each.bias_gradients) for each in (shared[0], expected, shared[1])),
        strict=True,
    ):
        assert_close("gradient", theirs, ours, 1e-6)
        assert torch.equal(ours, again)


def test_the_gradients_take_a_factor_from_the_device(device):
    network = random_network(device, "one pixel")
    plain = network_sweep(*network.arguments, **OPTIONS)
    scaled = network_sweep(*network.arguments, **OPTIONS, upstream=torch.tensor(0.5, device=device))
    assert all(torch.equal(a * 0.5, b) for a, b in zip(plain.weight_gradients, scaled.weight_gradients, strict=True))


def test_a_chain_of_linear_layers_equals_strict_sweeps(device):
    network = random_network(device, "linear")
    found = network_sweep(*network.arguments, **OPTIONS, momentum=0.5)
    layers = network.layers
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    activations = [layer.activation for layer in layers]
    expected = strict_sweep(network.x, network.target, weights, biases, activations, **OPTIONS, momentum=0.5)
    for name in LISTS:
        for ours, theirs in zip(getattr(found, name), getattr(expected, name), strict=True):
            assert_close(name, theirs, ours, 1e-5)


def test_refusals_name_the_argument(device):
    network = random_network(device, "small strided")
    x, target, (first, second, last) = network.arguments
    half, wide = replace(second, weight=second.weight.half()), replace(last, weight=x.new_ones(3, 80))
    refused = [
        (UsageError, "no layers", (x, target, [])),
        (UsageError, "float64", (x.double(), target, network.layers)),
        (UsageError, "'swish'", (x, target, [replace(first, activation="swish"), second, last])),
        (UsageError, "2 groups", (x, target, [replace(first, form=(*first.form[:3], 2)), second, last])),
        (UsageError, "must not overlap", (x, target, [replace(first, pool="max", window=(2, 2, 1, 1)), second, last])),
        (UsageError, "is linear and pools", (x, target, [first, second, replace(last, pool="max")])),
        (UsageError, "nothing has a free value", (x, target, [first])),
        (ShapeError, r"weights\[1\] is torch.float16", (x, target, [first, half, last])),
        (ShapeError, r"biases\[0\] has shape", (x, target, [replace(first, bias=second.bias), second, last])),
        (ShapeError, r"weights\[2\] has shape", (x, target, [first, second, replace(last, weight=last.weight[:, 1:])])),
        (ShapeError, "layer 2 convolves what a linear", (x, target, [first, wide, second])),
        (ShapeError, "x has shape", (x[0], target, network.layers)),
        (ShapeError, "target has shape", (x, target[1:], network.layers)),
    ]  # fmt: skip
    for kind, words, arguments in refused:
        with pytest.raises(kind, match=words):
            network_sweep(*arguments, **OPTIONS)
    for changed, words in (({"steps": 0}, "steps=0"), ({"convolution_precision": "fast"}, "input_precision='fast'")):
        with pytest.raises(UsageError, match=words):
            network_sweep(*network.arguments, **(OPTIONS | changed))
    with pytest.raises(ShapeError, match="values has shape"):
        network_gradients(x, x.new_empty(5, 16), x.new_empty(5, 16), network.layers)


def test_a_sweep_has_no_derivative(device):
    network = random_network(device, "one pixel")
    wanted = replace(network.layers[0], weight=network.layers[0].weight.clone().requires_grad_())
    sweep = network_sweep(network.x, network.target, [wanted, network.layers[1]], **OPTIONS, gradients=False)
    with pytest.raises(DoubleBackwardError, match="network was differentiated"):
        sweep.values[0].sum().backward()
