"""The tables of configurations, and what a machine that cannot run the kernels is told."""

import json
import os
import subprocess
import sys
from importlib import import_module
from itertools import product

import pytest
from interpreter import INTERPRETED
from recorded import recorded
from shipped import cases_of, launches_of

from pccompile.kernels.batch_norm import configurations as batch_norm_configurations
from pccompile.kernels.conv_error import configurations as conv_error_configurations
from pccompile.kernels.conv_predict import configurations as conv_predict_configurations
from pccompile.kernels.conv_step import configurations as conv_step_configurations
from pccompile.kernels.cross_entropy import configurations as cross_entropy_configurations
from pccompile.kernels.devices import ARCHITECTURES
from pccompile.kernels.linear_error import configurations as error_configurations
from pccompile.kernels.linear_predict import configurations as predict_configurations
from pccompile.kernels.linear_step import configurations as step_configurations
from pccompile.kernels.row_norm import configurations as row_norm_configurations
from pccompile.kernels.strict_sweep import configurations as sweep_configurations
from pccompile.kernels.tables import Streamed

TABLES = {
    "linear_predict": (predict_configurations, {"large", "small"}),
    "linear_error": (error_configurations, {"large", "small"}),
    "linear_step": (step_configurations, {"whole", "long", "tiled"}),
    "conv_predict": (conv_predict_configurations, {"large", "small", "direct"}),
    "conv_error": (conv_error_configurations, {"large", "small", "direct"}),
    "conv_step": (conv_step_configurations, {"product", "direct"}),
    "strict_sweep": (sweep_configurations, {"tall", "flat"}),
}


@pytest.mark.parametrize("operation", TABLES)
def test_every_architecture_has_every_size_for_every_arithmetic_and_each_is_compiled(operation):
    module, sizes = TABLES[operation]
    for architecture, precision in product(ARCHITECTURES, ("half", "tf32", "ieee")):
        assert set(module.CONFIGURATIONS[architecture][precision]) == sizes
    assert sizes <= set(launches_of(operation))


class Noting(dict):
    """A table that notes the sizes that are looked up in it."""

    def __init__(self, table, met):
        super().__init__(
            {key: Noting(value, met) if isinstance(value, dict) else value for key, value in table.items()}
        )
        self.met = met

    def __getitem__(self, key):
        found = super().__getitem__(key)
        if not isinstance(found, dict):
            self.met.add(key)
        return found


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not launched through Triton")
@pytest.mark.parametrize("operation", ["row_norm", "batch_norm", "cross_entropy", "embedding_error", "pointwise"])
def test_every_size_of_what_is_bound_by_memory_is_compiled(operation, monkeypatch):
    module, met = import_module(f"pccompile.kernels.{operation}.configurations"), set()
    monkeypatch.setattr(module, "CONFIGURATIONS", Noting(module.CONFIGURATIONS, met))
    for case in cases_of(operation):
        recorded(launches_of(operation)[case.launch], case)
    assert met == set(module.CONFIGURATIONS["sm_90"]["half"])


def test_large_tiles_are_for_launches_that_fill_the_device():
    large, small = (predict_configurations.CONFIGURATIONS["sm_90"]["half"][size] for size in ("large", "small"))
    assert predict_configurations.configuration_for("sm_90", "half", 8192, 4096) == large
    assert predict_configurations.configuration_for("sm_90", "half", 64, 1000) == small
    large, small = (error_configurations.CONFIGURATIONS["sm_90"]["half"][size] for size in ("large", "small"))
    assert error_configurations.configuration_for("sm_90", "half", 8192, 4096, 4096) == large
    assert error_configurations.configuration_for("sm_90", "half", 64, 100, 100) == small


def test_large_convolution_tiles_are_for_launches_that_fill_the_device():
    for module in (conv_predict_configurations, conv_error_configurations):
        sizes = module.CONFIGURATIONS["sm_90"]["half"]
        assert module.configuration_for("sm_90", "half", 256 * 32 * 32, 64, 1, direct=False) == sizes["large"]
        assert module.configuration_for("sm_90", "half", 4 * 8 * 8, 64, 1, direct=False) == sizes["small"]
        assert module.configuration_for("sm_90", "half", 256 * 32 * 32, 1, 64, direct=True) == sizes["direct"]


def test_what_is_bound_by_memory_is_cut_up_by_its_cell_and_its_shape():
    cell = Streamed(4096, 2)
    norm, loss = row_norm_configurations, cross_entropy_configurations
    assert norm.fitted(cell, 100, 1000) == norm.Configuration(4, 1024, True, 2)
    assert norm.fitted(cell, 2, 1000) == norm.Configuration(2, 1024, True, 2)
    assert norm.fitted(cell, 100, 5000) == norm.Configuration(1, 4096, False, 2)
    assert loss.fitted(loss.Configuration(1, 2048, 2), 100, 1000, 1) == loss.Configuration(2, 1024, 2)
    assert loss.fitted(loss.Configuration(1, 4096, 2), 100, 5000, 1) == loss.Configuration(1, 4096, 2)
    assert loss.fitted(loss.Configuration(64, 32, 2), 49, 1000, 49) == loss.Configuration(64, 32, 2)
    batch = batch_norm_configurations
    assert batch.fitted(batch.Configuration(1, 64, 2), 3, 5, 100, pools=True) == batch.Configuration(1, 128, 2)
    assert batch.fitted(batch.Configuration(8, 64, 2), 3, 5, 100) == batch.Configuration(8, 64, 2)


def test_a_step_holds_whole_rows_where_they_fit():
    sizes = step_configurations.CONFIGURATIONS["sm_90"]["half"]
    for in_features, size in ((1, "whole"), (256, "whole"), (257, "long"), (1024, "long"), (1025, "tiled")):
        assert step_configurations.configuration_for("sm_90", "half", in_features) == sizes[size]


@pytest.mark.parametrize(
    ("batch", "out", "in_features", "expected"),
    [
        (512, 4096, 2048, 4096),  # half of the cache holds the weight
        (512, 16384, 4096, 3200),  # it holds 3200 of its rows, and the sums
        (2**17, 16384, 4096, 16384),  # the sums do not stay there, and would cost more than they spare
        (8, 1024, 2**22, 1024),  # it does not hold the rows of one tile
    ],
)
def test_outputs_are_taken_in_groups_where_that_spares_bytes(batch, out, in_features, expected):
    tiles = step_configurations.CONFIGURATIONS["sm_90"]["half"]["tiled"]
    assert step_configurations.outputs_at_a_time("sm_90", tiles, batch, out, in_features, 2) == expected


def test_gradients_are_shared_by_as_many_programs_as_fill_the_device():
    splits_for = conv_error_configurations.splits_for
    assert splits_for("sm_90", tiles=9, row_tiles=8192) == 29
    assert splits_for("sm_90", tiles=9, row_tiles=32) == 4
    assert splits_for("sm_90", tiles=1000, row_tiles=8192) == 1
    assert splits_for("sm_90", tiles=9, row_tiles=3) == 1
    assert splits_for("gfx942", tiles=19, row_tiles=8192) == 32


def test_tensors_on_the_cpu_are_refused_without_the_interpreter():
    program = """
import json, torch
from pccompile.errors import UsageError
from pccompile.kernels import linear_error, linear_predict
x, said = torch.ones(2, 2), []
for call in (lambda: linear_predict(x, x), lambda: linear_error(x, None, x, x)):
    try:
        call()
    except UsageError as error:
        said.append(str(error))
print(json.dumps(said))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert len(said) == 2 and all("cannot run on cpu" in words and "TRITON_INTERPRET=1" in words for words in said)
