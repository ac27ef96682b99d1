"""What the campaign checks of shipped configurations, tried on the CPU: a sample of those of GPUs, and what it sees."""

from dataclasses import replace
from itertools import cycle

import pytest

from bench.gpu import sweep_operations
from bench.gpu.operations import OPERATIONS
from bench.gpu.shipped import check_shipped, judge, rows_of
from bench.gpu.work import Status, Work, attempt
from pccompile.kernels.devices import ARCHITECTURES

ROW_NORM = replace(next(operation for operation in OPERATIONS if operation.name == "row_norm"), shapes=())
TURNS = {
    operation.name: (operation, architecture, precision if precision in operation.precisions else "ieee")
    for operation, architecture, precision in zip(
        OPERATIONS, cycle(ARCHITECTURES), cycle(("half", "ieee", "tf32")), strict=False
    )
}


@pytest.mark.parametrize(("operation", "architecture", "precision"), TURNS.values(), ids=TURNS)
def test_configurations_of_gpus_give_what_the_reference_gives(operation, architecture, precision, monkeypatch):
    monkeypatch.setattr(sweep_operations, "STEPS", 1)
    rows = [row for row in rows_of(replace(operation, shapes=()), architecture) if row.precision == precision]
    assert {row.size for row in rows} == set(operation.cells(architecture, precision)) == set(operation.awkward)
    for row in rows:
        verdict = judge(operation, row, "cpu")
        assert verdict["right"], (str(row), verdict)


def test_every_row_is_met_on_awkward_shapes_and_on_the_smallest_it_is_chosen_for():
    linear_predict = OPERATIONS[0]
    assert [str(row) for row in rows_of(linear_predict, "sm_90") if row.precision == "half"] == [
        "half large 131x70x133",
        "half large 4096x1024x4096",
        "half small 131x70x133",
        "half small 64x256x10",
    ]


def test_a_part_keeps_what_is_right_and_judges_again_what_was_wrong(tmp_path):
    path = tmp_path / "parts" / "a.json"
    outcome = attempt(check_shipped(ROW_NORM, "cpu"), Work.resumed(path, {}))
    assert (outcome.status, outcome.items) == (Status.DONE, 8)
    work = Work.resumed(path, {})
    work.items["ieee short 19x60"] = {"right": False}
    outcome = attempt(check_shipped(spoiled(ROW_NORM), "cpu"), work)
    assert outcome.status is Status.FAILED and outcome.message.startswith("row_norm: ieee short 19x60: its results")
    assert attempt(check_shipped(ROW_NORM, "cpu"), Work.resumed(path, {})).status is Status.DONE


def spoiled(operation):
    """The same, but that an element of the second result is wrong."""

    def prepare(shape, precision, device):
        launcher = operation.prepare(shape, precision, device)

        def wrong(configuration):
            launch = launcher(configuration)

            def run():
                launch.run()
                launch.results[1].view(-1)[-1] += 1

            return replace(launch, run=run)

        return wrong

    return replace(operation, prepare=prepare)


def nothing():
    pass


def raises():
    raise RuntimeError("out of\nresources")


@pytest.mark.parametrize(
    ("run", "why"),
    [(nothing, "its results are off by nan, nan"), (raises, "RuntimeError: out of resources")],
    ids=["nothing", "raises"],
)
def test_what_is_not_written_or_raises_is_wrong(run, why):
    def prepare(shape, precision, device):
        launcher = ROW_NORM.prepare(shape, precision, device)
        return lambda configuration: replace(launcher(configuration), run=run)

    verdict = judge(replace(ROW_NORM, prepare=prepare), next(rows_of(ROW_NORM, "sm_80")), "cpu")
    assert not verdict["right"] and verdict["why"].startswith(why)
