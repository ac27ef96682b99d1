"""Every kernel, under every shipped configuration, compiles for every architecture and stays within its budget."""

import json
import os
from dataclasses import asdict
from itertools import product

import pytest
from ahead_of_time import Measurement, measure
from filelock import FileLock
from meta_convolutions import LAYERS, layer_of
from recorded import Case
from shipped import CASES, OPERATIONS, REGISTERS, SHARED, WARP_GROUPS, launches_of

from pccompile.kernels import ACTIVATIONS


@pytest.fixture(scope="session")
def measurements(tmp_path_factory):
    """Of every case; measured once, however many processes share the tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    written = folder / "measurements.json"
    with FileLock(folder / "measurements.lock"):
        if not written.exists():
            found = measure(CASES)
            written.write_text(json.dumps([[asdict(kernel) for kernel in found[case]] for case in CASES]))
    kernels = [[Measurement(**fields) for fields in each] for each in json.loads(written.read_text())]
    return dict(zip(CASES, kernels, strict=True))


def products_of(case: Case) -> int:
    return launches_of(case.operation)[case.launch].products


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_shipped_kernel_stays_within_its_budget(measurements, case):
    assert measurements[case]
    for found in measurements[case]:
        assert found.shared <= SHARED[case.architecture]
        assert 0 < found.registers <= REGISTERS[case.architecture]
        assert found.spilled == 0


@pytest.mark.parametrize("case", [c for c in CASES if products_of(c) and c.precision != "ieee"], ids=str)
def test_reduced_precision_uses_tensor_cores(measurements, case):
    assert all(found.tensor_core >= products_of(case) for found in measurements[case])


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if products_of(case) and case.precision != "ieee" and case.operation in WARP_GROUPS.get(case.architecture, ())
    ],
    ids=str,
)
def test_large_tiles_are_multiplied_by_whole_groups_of_warps(measurements, case):
    assert all(found.warp_group == found.tensor_core for found in measurements[case])


@pytest.mark.parametrize("case", [c for c in CASES if products_of(c) and c.precision == "ieee"], ids=str)
def test_ieee_products_use_no_tensor_cores_that_round_to_tf32(measurements, case):
    if case.architecture != "gfx942":  # whose matrix cores multiply float32 exactly
        assert all(found.tensor_core == 0 for found in measurements[case])


def test_a_kernel_that_spills_is_seen_to():
    two_warps = Case("linear_predict", "large", "sm_80", "bfloat16", "half", "identity", warps=2)
    (found,) = measure([two_warps])[two_warps]
    assert found.spilled > 0


def test_products_by_single_warps_are_told_from_those_by_groups():
    two_warps = Case("linear_predict", "small", "sm_90", "bfloat16", "half", "identity", warps=2)
    (found,) = measure([two_warps])[two_warps]
    assert found.tensor_core > 0 and found.warp_group == 0


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_cases_cover_every_activation_of_an_operation_that_has_any(operation):
    met = {case.activation for case in CASES if case.operation == operation}
    assert met in ({""}, set(ACTIVATIONS))


@pytest.mark.parametrize("operation", ["conv_predict", "conv_error", "conv_step"])
def test_the_cases_cover_every_layer_of_a_convolution(operation):
    met = {layer_of(case) for case in CASES if case.operation == operation and products_of(case)}
    assert met == set(LAYERS)


def test_no_two_cases_are_the_same():
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_product_is_compiled_in_every_arithmetic_for_every_architecture(operation):
    compiled = {(c.architecture, c.precision) for c in CASES if c.operation == operation}
    arithmetics = ("half", "tf32", "ieee")
    if any(products_of(case) for case in CASES if case.operation == operation):
        assert compiled == set(product(SHARED, arithmetics))
        halves = {(c.architecture, c.dtype) for c in CASES if c.operation == operation and products_of(c)}
        assert halves >= set(product(SHARED, ("bfloat16",)))
    else:
        assert {architecture for architecture, _ in compiled} == set(SHARED)
