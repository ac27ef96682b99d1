"""What the tuner launches, on small shapes: by the shipped configuration, and by one beside it."""

from dataclasses import asdict

import pytest

from bench.gpu import sweep_operations, tune
from bench.gpu.operations import OPERATIONS
from bench.gpu.tune import tune_cell

# One of each size that the interpreter has.
SHAPES = {
    "linear_predict": [(20, 18, 17)],
    "linear_error": [(20, 18, 17)],
    "linear_step": [(20, 18, 17), (20, 40, 33)],
    "strict_sweep": [(20, 12, 18, 5)],
    "chain_gradients": [(20, 12, 18, 5)],
    "network_sweep": [(2, 1, 8, 8)],
    "network_gradients": [(2, 1, 8, 8)],
    "conv_predict": [(2, 3, 6, 5, 3, 1, 1)],
    "conv_error": [(2, 3, 6, 5, 3, 2, 1)],
    "conv_step": [(2, 3, 6, 5, 3, 1, 1)],
    "row_norm": [(5, 20), (2, 1030), (2, 2050), (2, 4100)],
    "batch_norm": [(3, 5, 9, 0), (3, 5, 9, 1)],
    "cross_entropy": [(5, 7, 1), (2, 1030, 1), (2, 5, 9)],
    "embedding_error": [(30, 7, 20)],
    "pointwise": [(0, 5, 7), (1, 5, 7), (2, 5, 7)],
    "recurrences": [(4, 3, 5, 7), (3, 3, 5, 7)],
}


def first_beside_the_shipped_one(launches):
    """The clock: that one takes half as long as the others."""
    return {name: 0.5 if name == "0" else 1.0 for name in launches}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_tuner_finds_what_is_quicker_and_computes_the_same(operation, monkeypatch):
    monkeypatch.setattr(sweep_operations, "STEPS", 2)
    monkeypatch.setattr(tune, "ROUNDS", 1)
    architecture, met = "interpreter", set()
    for shape in SHAPES[operation.name]:
        size = operation.size_of(architecture, "ieee", shape)
        shipped = operation.cells(architecture, "ieee")[size]
        launcher = operation.prepare(shape, "ieee", "cpu")
        clock = first_beside_the_shipped_one
        tuned = tune_cell(shipped, operation.space, {"shape": launcher}, architecture, "ieee", clock)
        assert tuned.refused == {}
        assert tuned.ratio < 1 and asdict(tuned.configuration) != asdict(shipped)
        results = launcher(tuned.configuration).results
        assert results and all(result.isfinite().all() for result in results)
        met.add(size)
    assert met == set(operation.cells(architecture, "ieee")) - {"direct"}
