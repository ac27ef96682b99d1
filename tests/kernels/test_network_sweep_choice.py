"""How a network's samples are shared out, and which networks are small enough for one launch."""

from itertools import product

import pytest
import torch
from random_networks import random_network

from pccompile.kernels import NetworkLayer
from pccompile.kernels.devices import ARCHITECTURES
from pccompile.kernels.network_sweep.choice import MOST_LAYERS, SAMPLE_BYTES, WEIGHT_BYTES, too_large
from pccompile.kernels.network_sweep.configurations import CONFIGURATIONS, GRADIENTS, samples_for
from pccompile.kernels.network_sweep.layout import layout_of


def test_a_program_owns_a_power_of_two_of_samples_and_no_processor_is_left_without_one():
    assert [samples_for("sm_90", batch) for batch in (1, 64, 131, 263, 264, 600, 8192)] == [1, 1, 1, 1, 2, 4, 16]


def test_every_architecture_has_tiles_for_every_arithmetic():
    for table, architecture in product((CONFIGURATIONS, GRADIENTS), ARCHITECTURES):
        assert set(table[architecture]) == {"half", "tf32", "ieee"}


def test_layers_lie_side_by_side_and_drives_have_every_position_of_a_convolution():
    network = random_network("cpu", "small MNIST CNN")
    layout = layout_of(network.x.shape[1:], network.layers)
    assert [place.image for place in layout.places] == [(5, 4, 3), (3, 3, 2), (7, 1, 1), (4, 1, 1)]
    assert [place.own for place in layout.places] == [0, 64, 96, 112] and layout.columns == 128
    assert layout.places[0].convolved == (5, 8, 7) and layout.places[1].drives == 288
    assert layout_of(network.x.shape[1:], network.layers, True).columns == 128 + 16


def of_one_pixel(*shapes):
    layers = [NetworkLayer(torch.empty(shape, device="meta")) for shape in shapes]
    return layers, layout_of((shapes[0][1], 1, 1), layers)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ([(16, 16, 1, 1)] * MOST_LAYERS, ""),
        ([(16, 16, 1, 1)] * (MOST_LAYERS + 1), "there are 9 layers, more than 8"),
        ([(SAMPLE_BYTES // 192 * 16, 1, 1, 1)], ""),
        ([(SAMPLE_BYTES // 192 * 16 + 16, 1, 1, 1)], "a sample's values, errors and drives are 257 KiB, more than 256"),
        ([(16, WEIGHT_BYTES // 64, 1, 1)], ""),
        ([(16, WEIGHT_BYTES // 64 + 16384, 1, 1)], "the weights are 17 MiB, more than 16"),
    ],
)
def test_only_what_fits_is_one_launch(shapes, reason):
    assert too_large(*of_one_pixel(*shapes)) == reason
