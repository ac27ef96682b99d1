"""The kernels of these folders, as their launches specialise them, compile for every architecture within budget."""

from functools import cache
from importlib import import_module
from itertools import cycle

import pytest
from recorded import Recording, check_budget, measure_recordings

from pccompile.kernels.devices import ARCHITECTURES

OPERATIONS = ("batch_norm", "cross_entropy", "embedding_error", "lstm", "pointwise", "row_norm")


def shipped() -> list[Recording]:
    """Every launch on every architecture; the dtypes take turns, each launch meeting both."""
    recordings = []
    for operation in OPERATIONS:
        launches = import_module(f"launches_{operation}").LAUNCHES
        for shift, launch in enumerate(launches):
            dtypes = cycle(("float32", "bfloat16") if shift % 2 else ("bfloat16", "float32"))
            recordings += [Recording(operation, launch, each, next(dtypes)) for each in ARCHITECTURES]
    return recordings


RECORDINGS = shipped()


@cache
def measurements(operation):
    return measure_recordings([recording for recording in RECORDINGS if recording.operation == operation])


@pytest.mark.parametrize("recording", RECORDINGS, ids=str)
def test_a_launched_kernel_stays_within_its_budget(recording):
    check_budget(recording.architecture, measurements(recording.operation)[recording])
