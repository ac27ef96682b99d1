"""Tuned tables over the shipped ones: what is taken, and what is left out with a warning."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path

import pytest

from pccompile.kernels import recurrences, tables
from pccompile.kernels.fingerprint import fingerprint
from pccompile.kernels.network_sweep import configurations as network_configurations
from pccompile.kernels.strict_sweep import configurations as sweep_configurations
from pccompile.kernels.tables import SHARED_BYTES, Space, cells, everywhere, overlaid, problem_with, shared_bytes


@dataclass(frozen=True)
class Tiles:
    rows: int
    columns: int
    terms: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Runs:
    elements: int
    warps: int


# The folders with a table of configurations; sweeps have another one, of their gradients, and recurrences share one.
FOLDERS = sorted(path.parent.name for path in Path(tables.__file__).parent.glob("*/configurations.py"))
TABLES = {
    name: (module.SPACE, module.CONFIGURATIONS)
    for name in FOLDERS
    for module in [import_module(f"pccompile.kernels.{name}.configurations")]
}
TABLES["recurrences"] = (recurrences.SPACE, recurrences.CONFIGURATIONS)
TABLES["chain_gradients"] = (sweep_configurations.GRADIENT_SPACE, sweep_configurations.GRADIENTS)
TABLES["network_gradients"] = (network_configurations.GRADIENT_SPACE, network_configurations.GRADIENTS)
PRODUCTS = (("rows", "columns", "terms"),)
SPACE = Space("made_up", PRODUCTS)
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
        return overlaid(SPACE, TABLE)

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
    assert overlaid(SPACE, TABLE) is TABLE
    monkeypatch.delenv("PCCOMPILE_TUNED_DIR")
    assert overlaid(SPACE, TABLE) is TABLE


def test_a_table_without_sizes_is_laid_over_as_well(tmp_path, monkeypatch):
    monkeypatch.setenv("PCCOMPILE_TUNED_DIR", str(tmp_path))
    content = {"format": 1, "operation": "flat", "entries": [entry(size=None)]}
    (tmp_path / "flat.json").write_text(json.dumps(content))
    assert overlaid(Space("flat", PRODUCTS), {"sm_90": {"half": SHIPPED}}) == {"sm_90": {"half": Tiles(**BETTER)}}


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
    for name, (space, table) in TABLES.items():
        assert space.operation == name
        for (architecture, precision, *_), shipped in cells(table):
            assert problem_with(shipped, shipped, space, architecture, precision) is None


def test_a_field_may_have_a_least_value():
    small = replace(SHIPPED, rows=32)
    assert problem_with(small, SHIPPED, SPACE, "sm_90", "half") is None
    least = Space("made_up", PRODUCTS, least={"rows": 64})
    assert problem_with(small, SHIPPED, least, "sm_90", "half") == "rows is 32, less than 64"


def test_a_field_may_have_choices_and_a_product_counts_where_a_configuration_has_its_fields():
    space = Space("made_up", PRODUCTS, {"elements": (512, 1024)})
    runs = Runs(1024, 4)
    assert space.values_of(runs) == {"elements": (512, 1024), "warps": (4, 8)}
    assert set(space.values_of(SHIPPED)) == {"rows", "columns", "terms", "warps", "stages"}
    assert problem_with(runs, runs, space, "sm_90", "half") is None
    assert (
        problem_with(Runs(2048, 4), runs, space, "sm_90", "half") == "elements is 2048, not a power of two up to 1024"
    )
    assert "power of two" in problem_with(Runs(768, 4), runs, space, "sm_90", "half")
    assert "power of two" in problem_with(Runs(1024, 3), runs, space, "sm_90", "half")


def test_what_is_bound_by_memory_ships_the_same_for_every_architecture(tmp_path, monkeypatch):
    table = everywhere({"long": Runs(1024, 4)})
    assert set(table) == {*SHARED_BYTES, "interpreter"}
    space = Space("made_up", choices={"elements": (512, 1024)})
    monkeypatch.setenv("PCCOMPILE_TUNED_DIR", str(tmp_path))
    content = {"format": 1, "operation": "made_up", "entries": [entry({"elements": 512, "warps": 8}, size="long")]}
    (tmp_path / "made_up.json").write_text(json.dumps(content))
    tuned = overlaid(space, table)
    assert tuned["sm_90"] == {"half": {"long": Runs(512, 8)}, "ieee": {"long": Runs(1024, 4)}}
    assert tuned["sm_80"] == table["sm_80"]


def test_shared_memory_is_that_of_the_largest_product_times_the_stages():
    assert shared_bytes(SHIPPED, PRODUCTS, "half") == 3 * 2 * 32 * (64 + 64)
    assert shared_bytes(replace(SHIPPED, stages=5), PRODUCTS, "ieee") == 5 * 4 * 32 * (64 + 64)
    assert shared_bytes(SHIPPED, (), "half") == 0
    assert set(SHARED_BYTES) == {"sm_80", "sm_90", "sm_100", "gfx942"}


def test_the_kernels_read_what_the_variable_points_to(tmp_path):
    expected = {}
    for name, (_, table) in TABLES.items():
        (_, _, *size), shipped = next(item for item in cells(table) if item[0][:2] == ("sm_90", "half"))
        content = {
            "format": 1,
            "operation": name,
            "entries": [entry(asdict(shipped) | {"warps": 1}, size=(size or [None])[0])],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        expected[name] = [each.warps for keys, each in cells(table) if keys[:2] == ("sm_90", "half")]
        expected[name][0] = 1
    program = """
import json, sys
sys.path[:0] = [sys.argv[1]]
from test_tables import TABLES, cells
print(json.dumps({
    name: [each.warps for keys, each in cells(table) if keys[:2] == ("sm_90", "half")]
    for name, (_, table) in TABLES.items()
}))
"""
    environment = os.environ | {"PCCOMPILE_TUNED_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected


def test_the_fingerprint_of_the_kernels_follows_the_tuned_tables(tmp_path, monkeypatch):
    monkeypatch.delenv("PCCOMPILE_TUNED_DIR", raising=False)
    shipped = fingerprint()
    folders = [tmp_path / name for name in ("one", "other")]
    found = []
    for folder, rows in zip(folders, (64, 128), strict=True):
        folder.mkdir()
        content = {"format": 1, "operation": "flat", "entries": [entry(BETTER | {"rows": rows}, size=None)]}
        (folder / "flat.json").write_text(json.dumps(content))
        monkeypatch.setenv("PCCOMPILE_TUNED_DIR", str(folder))
        found.append(fingerprint())
    assert len({shipped, *found}) == 3
    monkeypatch.setenv("PCCOMPILE_TUNED_DIR", str(folders[0]))
    assert fingerprint() == found[0]
