"""The tuner with a clock that is a formula, and what it writes for the kernels to read."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch

import pccompile.kernels
from bench.gpu import tune
from bench.gpu.candidates import neighbours
from bench.gpu.operations import OPERATIONS
from bench.gpu.tune import Launch, Operation, tune_cell, tune_operation, write_table
from bench.gpu.work import OutOfTime, Work
from pccompile.kernels.devices import ARCHITECTURES
from pccompile.kernels.tables import Space, overlaid, shared_bytes


@dataclass(frozen=True)
class Tiles:
    rows: int
    columns: int
    terms: int
    warps: int
    stages: int


PRODUCTS = (("rows", "columns", "terms"),)
SPACE = Space("made_up", PRODUCTS)
SHIPPED = Tiles(64, 64, 32, 4, 3)
BEST = Tiles(128, 64, 64, 8, 3)


def distance(tiles):
    """How many changes away from the best."""
    return sum(
        abs(a.bit_length() - b.bit_length()) for a, b in zip(asdict(tiles).values(), asdict(BEST).values(), strict=True)
    )


class FakeTimer:
    """Each launch takes as long as its configuration is far from the best."""

    def __init__(self):
        self.rounds = 0

    def __call__(self, launches):
        self.rounds += 1
        return {name: launch() for name, launch in launches.items()}


def launcher(wrong=(), impossible=()):
    def launch(tiles):
        if tiles in impossible:
            raise RuntimeError("out of resources")
        result = torch.empty(4)

        def run():
            result.copy_(torch.arange(4.0) + (1.0 if tiles in wrong else 0.0))
            return 1.0 + distance(tiles)

        return Launch(run, (result,), lambda: (result,))

    return launch


def test_the_tuner_walks_to_the_quickest_configuration():
    tuned = tune_cell(SHIPPED, SPACE, {"a": launcher(), "b": launcher()}, "sm_90", "half", FakeTimer())
    assert tuned.configuration == BEST
    assert tuned.ratio == pytest.approx(1 / (1 + distance(SHIPPED)))
    assert tuned.shapes == {"a": (4.0, 1.0), "b": (4.0, 1.0)}
    assert tuned.refused == {} and tuned.tried > 5


def test_what_cannot_be_launched_or_computes_something_else_is_not_taken():
    notes = {"wrong": "a: its results differ by 5.3e-01", "impossible": "a: RuntimeError: out of resources"}
    for kind, note in notes.items():
        options = {kind: {BEST}}
        tuned = tune_cell(SHIPPED, SPACE, {"a": launcher(**options)}, "sm_90", "half", FakeTimer())
        assert tuned.configuration != BEST and tuned.refused == {str(BEST): note}
        assert distance(tuned.configuration) == 1


def test_nothing_quicker_leaves_the_shipped_configuration():
    tuned = tune_cell(BEST, SPACE, {"a": launcher()}, "sm_90", "half", FakeTimer())
    assert (tuned.configuration, tuned.ratio, tuned.shapes) == (BEST, 1.0, {})


def test_a_configuration_has_to_be_launchable_for_every_shape():
    launchers = {"a": launcher(), "b": launcher(impossible={BEST})}
    assert tune_cell(SHIPPED, SPACE, launchers, "sm_90", "half", FakeTimer()).configuration != BEST


def test_candidates_are_one_change_away_and_fit_shared_memory():
    around = neighbours(SHIPPED, SPACE, "sm_90", "half")
    changes = [sum(a != b for a, b in zip(asdict(c).values(), asdict(SHIPPED).values(), strict=True)) for c in around]
    assert set(changes) == {1} and len(set(around)) == len(around)
    assert {c.stages for c in around} == {2, 3, 4, 5} and {c.warps for c in around} == {4, 8}
    large = Tiles(128, 128, 32, 4, 3)
    assert any(c.rows == 256 for c in neighbours(large, SPACE, "sm_90", "ieee"))
    small = neighbours(large, SPACE, "sm_80", "ieee")
    assert small and all(shared_bytes(c, PRODUCTS, "ieee") <= 99 * 1024 for c in small)
    assert not any(c.stages == 5 for c in small)


def test_no_tile_is_smaller_than_the_kernel_takes():
    assert (
        min(c.rows for c in neighbours(SHIPPED, Space("made_up", PRODUCTS, least={"rows": 64}), "sm_90", "half")) == 64
    )
    assert min(c.rows for c in neighbours(SHIPPED, SPACE, "sm_90", "half")) == 32
    assert min(c.rows for c in neighbours(Tiles(16, 64, 16, 4, 3), SPACE, "sm_90", "half")) == 16


def test_values_that_an_operation_states_are_the_ones_that_are_tried():
    @dataclass(frozen=True)
    class Runs:
        elements: int
        warps: int

    space = Space("made_up", choices={"elements": (256, 1024, 4096), "warps": (1, 2)})
    around = neighbours(Runs(1024, 2), space, "sm_90", "half")
    assert set(around) == {Runs(256, 2), Runs(4096, 2), Runs(1024, 1)}


def made_up(prepared):
    """An operation with a table of two sizes, the larger without shapes."""

    def prepare(shape, precision, device):
        prepared.append(shape)
        return launcher()

    table = {"sm_90": {"half": {"small": SHIPPED, "large": SHIPPED}}}
    space = Space("made_up", PRODUCTS, least={"rows": 32})
    return Operation(space, table, ((1,), (2,)), lambda *_: "small", prepare, {})


@pytest.fixture
def clockless(monkeypatch):
    defaults = list(tune.tune_cell.__defaults__)
    monkeypatch.setattr(tune.tune_cell, "__defaults__", (FakeTimer(), *defaults[1:]))


def test_what_was_found_is_a_table_that_the_kernels_read(tmp_path, clockless, monkeypatch):
    prepared = []
    operation = made_up(prepared)
    work = Work(tmp_path / "parts" / "tune-made_up-half.json", {})
    tune_operation(operation, "half", "sm_90")(work)
    assert prepared == [(1,), (2,)]
    assert work.items["large"] == {"left_out": "no shape of the list has this size"}
    content = json.loads((tmp_path / "tuned" / "made_up.json").read_text())
    assert [entry["size"] for entry in content["entries"]] == ["small"]
    monkeypatch.setenv("PCCOMPILE_TUNED_DIR", str(tmp_path / "tuned"))
    table = overlaid(SPACE, {"sm_90": {"half": {"small": SHIPPED, "large": SHIPPED}}})
    assert table["sm_90"]["half"] == {"small": BEST, "large": SHIPPED}


def test_what_is_tuned_is_not_tuned_again(tmp_path, clockless):
    path, prepared = tmp_path / "parts" / "tune-made_up-half.json", []
    for _ in range(2):
        tune_operation(made_up(prepared), "half", "sm_90")(Work.resumed(path, {}))
    assert len(prepared) == 2


def test_no_cell_begins_when_the_time_is_up(tmp_path, clockless):
    work = Work(tmp_path / "parts" / "tune-made_up-half.json", {}, until=0.0)
    with pytest.raises(OutOfTime):
        tune_operation(made_up([]), "half", "sm_90")(work)


def test_no_table_is_written_where_nothing_is_quicker(tmp_path):
    Work(tmp_path / "parts" / "tune-made_up-half.json", {}).add("small", {"configuration": {}, "ratio": 1.0})
    assert write_table("made_up", tmp_path) is None
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_cell_of_a_shipped_table_has_shapes_to_be_tuned_on(operation):
    for architecture in ("sm_90", "gfx942"):
        for precision in operation.precisions:
            sizes = {operation.size_of(architecture, precision, shape) for shape in operation.shapes}
            assert sizes == set(operation.cells(architecture, precision)) - {"direct"}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_shipped_configuration_has_others_around_it(operation):
    for architecture in ARCHITECTURES:
        for precision in operation.precisions:
            for shipped in operation.cells(architecture, precision).values():
                assert len(neighbours(shipped, operation.space, architecture, precision)) > 2


def test_every_table_of_the_kernels_is_tuned():
    folder = Path(pccompile.kernels.__file__).parent
    spaces = [name for path in folder.rglob("*.py") for name in re.findall(r'Space\(\s*"(\w+)"', path.read_text())]
    assert sorted(spaces) == sorted(operation.name for operation in OPERATIONS)
