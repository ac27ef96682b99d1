"""Tuned tables over the shipped ones: what is taken, and what is left out with a warning."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace

import pytest

from pccompile.kernels import tables
from pccompile.kernels.conv_error import configurations as conv_error_configurations
from pccompile.kernels.conv_predict import configurations as conv_predict_configurations
from pccompile.kernels.linear_error import configurations as error_configurations
from pccompile.kernels.linear_predict import configurations as predict_configurations
from pccompile.kernels.tables import SHARED_BYTES, cells, overlaid, problem_with, shared_bytes


@dataclass(frozen=True)
class Tiles:
    rows: int
    columns: int
    terms: int
    warps: int
    stages: int


MODULES = {
    "linear_predict": predict_configurations,
    "linear_error": error_configurations,
    "conv_predict": conv_predict_configurations,
    "conv_error": conv_error_configurations,
}
PRODUCTS = (("rows", "columns", "terms"),)
SHIPPED = Tiles(64, 64, 32, 4, 3)
TABLE = {"sm_90": {"half": {"large": SHIPPED, "small": SHIPPED}}, "interpreter": {"half": {"large": SHIPPED}}}
BETTER = {"rows": 128, "columns": 64, "terms": 32, "warps": 8, "stages": 4}


@pytest.fixture
def overlay(tmp_path, monkeypatch):
    """Writes an operation's file of a tuner, and lays it over TABLE."""
    monkeypatch.setenv("PCCOMPILE_TUNED_DIR", str(tmp_path))

    def laid(*entries, text=None, **header):
        content = {"format": tables.FORMAT, "operation": "made_up", "entries": list(entries)} | header
        (tmp_path / "made_up.json").write_text(json.dumps(content) if text is None else text)
        return overlaid("made_up", TABLE, PRODUCTS)

    return laid


def entry(configuration=BETTER, architecture="sm_90", precision="half", size="small", **more):
    return {
        "architecture": architecture,
        "precision": precision,
        "size": size,
        "configuration": configuration,
        **more,
    }


@pytest.mark.filterwarnings("error")
def test_an_entry_replaces_its_cell_and_no_other(overlay):
    table = overlay(entry(device="a device", ratio=0.8))
    assert table["sm_90"]["half"] == {"large": SHIPPED, "small": Tiles(**BETTER)}
    assert table["interpreter"] == TABLE["interpreter"]
    assert TABLE["sm_90"]["half"]["small"] == SHIPPED


@pytest.mark.filterwarnings("error")
def test_without_a_file_the_table_is_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PCCOMPILE_TUNED_DIR", str(tmp_path))
    assert overlaid("made_up", TABLE, PRODUCTS) is TABLE
    monkeypatch.delenv("PCCOMPILE_TUNED_DIR")
    assert overlaid("made_up", TABLE, PRODUCTS) is TABLE


def test_a_table_without_sizes_is_laid_over_as_well(tmp_path, monkeypatch):
    monkeypatch.setenv("PCCOMPILE_TUNED_DIR", str(tmp_path))
    content = {"format": 1, "operation": "flat", "entries": [entry(size=None)]}
    (tmp_path / "flat.json").write_text(json.dumps(content))
    assert overlaid("flat", {"sm_90": {"half": SHIPPED}}, PRODUCTS) == {"sm_90": {"half": Tiles(**BETTER)}}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (entry(BETTER | {"rows": 48}), "power of two"),
        (entry(BETTER | {"rows": "64"}), "rows is '64'"),
        (entry(BETTER | {"warps": True}), "warps is True"),
        (entry(BETTER | {"stages": 0}), "stages is 0"),
        (entry(BETTER | {"rows": 512, "columns": 512}), "shared memory"),
        (entry({"rows": 128}), "fields"),
        (entry(BETTER | {"depth": 1}), "fields"),
        (entry(architecture="sm_70"), "sm_70"),
        (entry(size=None), "fields"),
        (entry(size="huge"), "huge"),
        ("nonsense", "nonsense"),
        ({"architecture": "sm_90"}, "fields"),
    ],
    ids=str,
)
def test_an_entry_that_does_not_fit_is_left_out_with_a_warning_and_the_others_are_taken(overlay, wrong, words):
    with pytest.warns(UserWarning, match=words):
        table = overlay(wrong, entry(size="large"))
    assert table["sm_90"]["half"] == {"large": Tiles(**BETTER), "small": SHIPPED}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "null"])
def test_a_corrupt_file_is_ignored_with_a_warning(overlay, text):
    with pytest.warns(UserWarning, match="the shipped configuration stays"):
        assert overlay(text=text) == TABLE


def test_a_file_of_another_format_or_operation_is_ignored_with_a_warning(overlay):
    for header in ({"format": 2}, {"operation": "another"}):
        with pytest.warns(UserWarning, match="made_up.json"):
            assert overlay(entry(), **header) == TABLE


def test_every_shipped_configuration_is_one_that_a_file_may_have():
    for module in MODULES.values():
        for (architecture, precision, _), shipped in cells(module.CONFIGURATIONS):
            least = getattr(module, "LEAST", {})
            assert problem_with(shipped, shipped, module.PRODUCTS, architecture, precision, least) is None


def test_a_field_may_have_a_least_value():
    small = replace(SHIPPED, rows=32)
    assert problem_with(small, SHIPPED, PRODUCTS, "sm_90", "half") is None
    assert problem_with(small, SHIPPED, PRODUCTS, "sm_90", "half", {"rows": 64}) == "rows is 32, less than 64"


def test_shared_memory_is_that_of_the_largest_product_times_the_stages():
    assert shared_bytes(SHIPPED, PRODUCTS, "half") == 3 * 2 * 32 * (64 + 64)
    assert shared_bytes(replace(SHIPPED, stages=5), PRODUCTS, "ieee") == 5 * 4 * 32 * (64 + 64)
    assert shared_bytes(SHIPPED, (), "half") == 0
    assert set(SHARED_BYTES) == {"sm_80", "sm_90", "sm_100", "gfx942"}


@pytest.mark.parametrize("operation", MODULES)
def test_the_kernels_read_what_the_variable_points_to(tmp_path, operation):
    module = MODULES[operation]
    tuned = asdict(module.CONFIGURATIONS["sm_90"]["half"]["small"]) | {"warps": 2}
    content = {"format": 1, "operation": operation, "entries": [entry(tuned)]}
    (tmp_path / f"{operation}.json").write_text(json.dumps(content))
    program = f"""
from pccompile.kernels.{operation}.configurations import CONFIGURATIONS
print(CONFIGURATIONS["sm_90"]["half"]["small"].warps, CONFIGURATIONS["sm_90"]["half"]["large"].warps)
"""
    environment = os.environ | {"PCCOMPILE_TUNED_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "2"
