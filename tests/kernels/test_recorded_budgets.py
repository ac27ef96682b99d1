"""The kernels of these folders, as their launches specialise them, compile for every architecture within budget."""

from importlib import import_module
from itertools import product

import pytest
from recorded import Recording, check_budget, measure_recordings

from pccompile.kernels.devices import ARCHITECTURES

OPERATIONS = ("cross_entropy",)
RECORDINGS = [
    Recording(operation, launch, architecture, dtype)
    for operation in OPERATIONS
    for launch, architecture, dtype in product(
        import_module(f"launches_{operation}").LAUNCHES, ARCHITECTURES, ("float32", "bfloat16")
    )
]


@pytest.fixture(scope="module")
def measurements():
    return measure_recordings(RECORDINGS)


@pytest.mark.parametrize("recording", RECORDINGS, ids=str)
def test_a_launched_kernel_stays_within_its_budget(measurements, recording):
    check_budget(recording.architecture, measurements[recording])
