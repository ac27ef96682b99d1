"""The tuner with a clock that is a formula, and what it writes for the kernels to read."""

import json
from dataclasses import asdict, dataclass
from typing import ClassVar

import pytest
import torch

from bench.gpu import tune
from bench.gpu.candidates import neighbours
from bench.gpu.conv_operations import ConvError, ConvPredict
from bench.gpu.linear_operations import PRECISIONS, LinearError, LinearPredict
from bench.gpu.operations import OPERATIONS
from bench.gpu.tune import Launch, tune_cell, tune_operation, write_table
from bench.gpu.work import OutOfTime, Work
from pccompile.kernels.tables import cells, overlaid, shared_bytes


@dataclass(frozen=True)
class Tiles:
    rows: int
    columns: int
    terms: int
    warps: int
    stages: int


PRODUCTS = (("rows", "columns", "terms"),)
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

        return Launch(run, (result,))

    return launch


def test_the_tuner_walks_to_the_quickest_configuration():
    tuned = tune_cell(SHIPPED, PRODUCTS, {"a": launcher(), "b": launcher()}, "sm_90", "half", FakeTimer())
    assert tuned.configuration == BEST
    assert tuned.ratio == pytest.approx(1 / (1 + distance(SHIPPED)))
    assert tuned.shapes == {"a": (4.0, 1.0), "b": (4.0, 1.0)}
    assert tuned.refused == 0 and tuned.tried > 5


def test_what_cannot_be_launched_or_computes_something_else_is_not_taken():
    for options in ({"wrong": {BEST}}, {"impossible": {BEST}}):
        tuned = tune_cell(SHIPPED, PRODUCTS, {"a": launcher(**options)}, "sm_90", "half", FakeTimer())
        assert tuned.configuration != BEST and tuned.refused == 1
        assert distance(tuned.configuration) == 1


def test_nothing_quicker_leaves_the_shipped_configuration():
    tuned = tune_cell(BEST, PRODUCTS, {"a": launcher()}, "sm_90", "half", FakeTimer())
    assert (tuned.configuration, tuned.ratio, tuned.shapes) == (BEST, 1.0, {})


def test_a_configuration_has_to_be_launchable_for_every_shape():
    launchers = {"a": launcher(), "b": launcher(impossible={BEST})}
    assert tune_cell(SHIPPED, PRODUCTS, launchers, "sm_90", "half", FakeTimer()).configuration != BEST


def test_candidates_are_one_change_away_and_fit_shared_memory():
    around = neighbours(SHIPPED, PRODUCTS, "sm_90", "half")
    changes = [sum(a != b for a, b in zip(asdict(c).values(), asdict(SHIPPED).values(), strict=True)) for c in around]
    assert set(changes) == {1} and len(set(around)) == len(around)
    assert {c.stages for c in around} == {2, 3, 4, 5} and {c.warps for c in around} == {4, 8}
    large = Tiles(128, 128, 32, 4, 3)
    assert any(c.rows == 256 for c in neighbours(large, PRODUCTS, "sm_90", "ieee"))
    small = neighbours(large, PRODUCTS, "sm_80", "ieee")
    assert small and all(shared_bytes(c, PRODUCTS, "ieee") <= 99 * 1024 for c in small)
    assert not any(c.stages == 5 for c in small)


def test_no_tile_is_smaller_than_the_kernel_takes():
    assert min(c.rows for c in neighbours(SHIPPED, PRODUCTS, "sm_90", "half", {"rows": 64})) == 64
    assert min(c.rows for c in neighbours(SHIPPED, PRODUCTS, "sm_90", "half")) == 32
    assert min(c.rows for c in neighbours(Tiles(16, 64, 16, 4, 3), PRODUCTS, "sm_90", "half")) == 16


class MadeUp:
    """An operation with a table of two sizes, the larger without shapes."""

    name = "made_up"
    products = PRODUCTS
    least: ClassVar = {"rows": 32}
    shapes = ((1,), (2,))

    def __init__(self):
        self.prepared = []

    def cells(self, architecture, precision):
        return {"small": SHIPPED, "large": SHIPPED}

    def size_of(self, architecture, precision, shape):
        return "small"

    def prepare(self, shape, precision):
        self.prepared.append(shape)
        return launcher()


@pytest.fixture
def clockless(monkeypatch):
    defaults = list(tune.tune_cell.__defaults__)
    monkeypatch.setattr(tune.tune_cell, "__defaults__", (FakeTimer(), *defaults[1:]))


def test_what_was_found_is_a_table_that_the_kernels_read(tmp_path, clockless, monkeypatch):
    operation = MadeUp()
    work = Work(tmp_path / "parts" / "tune-made_up-half.json", {})
    tune_operation(operation, "half", "sm_90")(work)
    assert operation.prepared == [(1,), (2,)]
    assert work.items["large"] == {"left_out": "no shape of the list has this size"}
    content = json.loads((tmp_path / "tuned" / "made_up.json").read_text())
    assert [entry["size"] for entry in content["entries"]] == ["small"]
    monkeypatch.setenv("PCCOMPILE_TUNED_DIR", str(tmp_path / "tuned"))
    table = overlaid("made_up", {"sm_90": {"half": {"small": SHIPPED, "large": SHIPPED}}}, PRODUCTS)
    assert table["sm_90"]["half"] == {"small": BEST, "large": SHIPPED}


def test_what_is_tuned_is_not_tuned_again(tmp_path, clockless):
    path, operation = tmp_path / "parts" / "tune-made_up-half.json", MadeUp()
    for _ in range(2):
        tune_operation(operation, "half", "sm_90")(Work.resumed(path, {}))
    assert len(operation.prepared) == 2


def test_no_cell_begins_when_the_time_is_up(tmp_path, clockless):
    work = Work(tmp_path / "parts" / "tune-made_up-half.json", {}, until=0.0)
    with pytest.raises(OutOfTime):
        tune_operation(MadeUp(), "half", "sm_90")(work)


def test_no_table_is_written_where_nothing_is_quicker(tmp_path):
    Work(tmp_path / "parts" / "tune-made_up-half.json", {}).add("small", {"configuration": {}, "ratio": 1.0})
    assert write_table("made_up", tmp_path) is None
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_cell_of_a_shipped_table_has_shapes_to_be_tuned_on(operation):
    for architecture in ("sm_90", "gfx942"):
        for precision in PRECISIONS:
            sizes = {operation.size_of(architecture, precision, shape) for shape in operation.shapes}
            assert sizes == set(operation.cells(architecture, precision)) - {"direct"}
    assert list(cells(operation.cells("sm_90", "half")))


def test_the_operations_prepare_launches_whose_results_are_all_that_they_write():
    predict = LinearPredict(device="cpu").prepare((5, 4, 3), "half")(None)
    assert [tuple(result.shape) for result in predict.results] == [(5, 3), (5, 3)]
    error = LinearError(device="cpu").prepare((5, 4, 3), "ieee")(None)
    assert [tuple(result.shape) for result in error.results] == [(5, 4), (3, 4), (3,)]
    shape = (2, 3, 5, 4, 3, 2)
    predict_images = ConvPredict(device="cpu").prepare(shape, "half")(None)
    assert [tuple(result.shape) for result in predict_images.results] == [(2, 4, 3, 3)] * 2
    error_images = ConvError(device="cpu").prepare(shape, "half")(None)
    assert [tuple(result.shape) for result in error_images.results] == [(2, 3, 5, 5), (4, 3, 3, 3), (4,)]
    assert predict.results[0].dtype is torch.bfloat16 and error.results[0].dtype is torch.float32
