"""Every kernel, under every shipped configuration, compiles for every architecture and stays within its budget."""

from itertools import cycle, product

import pytest
from ahead_of_time import Variant, measure

from pccompile.kernels import ACTIVATIONS
from pccompile.kernels.devices import ARCHITECTURES

KIB = 1024
# What one program may have; sm_80's tables serve sm_86, sm_89 and sm_120 as well, hence less than its 163 KiB.
SHARED = {"sm_80": 99 * KIB, "sm_90": 227 * KIB, "sm_100": 227 * KIB, "gfx942": 64 * KIB}
REGISTERS = {"sm_80": 255, "sm_90": 255, "sm_100": 255, "gfx942": 512}
OPERATIONS = ("linear_predict", "linear_error")


def shipped() -> list[Variant]:
    """Large tiles with gelu, bfloat16 and accumulation; small tiles with every activation, float16 and none."""
    variants = []
    for operation in OPERATIONS:
        activations = cycle(ACTIVATIONS)
        for architecture, precision in product(ARCHITECTURES, ("half", "tf32", "ieee")):
            large, small = ("bfloat16", "float16") if precision == "half" else ("float32", "float32")
            variants.append(Variant(operation, architecture, large, precision, "large"))
            variants.append(
                Variant(operation, architecture, small, precision, "small", next(activations), accumulate=False)
            )
        variants += [
            Variant(operation, architecture, "bfloat16", "half", "large", wide=True)
            for architecture in ("sm_90", "gfx942")
        ]
    # ptxas trades registers for occupancy where these two are used, and has spilled for it.
    variants += [
        Variant("linear_error", "sm_80", "bfloat16", "half", "large", activation)
        for activation in ("gelu_tanh", "silu")
    ]
    return variants


def shipped_sweeps() -> list[Variant]:
    """linear_step narrow and wide, strict_sweep in tiles of the batch and cooperatively, and its gradients: one size of
    each with gelu, bfloat16 and all options, the other with another activation, float16 and none."""
    variants = []
    sizes = {"linear_step": ("wide", "narrow"), "strict_sweep": ("tall", "flat"), "chain_gradients": ("only",)}
    for operation, (first, *others) in sizes.items():
        activations = cycle(ACTIVATIONS)
        for architecture, precision in product(ARCHITECTURES, ("half", "tf32", "ieee")):
            large, small = ("bfloat16", "float16") if precision == "half" else ("float32", "float32")
            variants.append(Variant(operation, architecture, large, precision, first))
            variants += [
                Variant(operation, architecture, small, precision, size, next(activations), accumulate=False)
                for size in others
            ]
        variants.append(Variant(operation, "sm_90", "bfloat16", "half", first, wide=True))
    return variants


VARIANTS = shipped() + shipped_sweeps()


@pytest.fixture(scope="module")
def measurements():
    return measure(VARIANTS)


def test_the_variants_cover_every_activation_of_both_operations():
    assert {(v.operation, v.activation) for v in VARIANTS} >= set(product(OPERATIONS, ACTIVATIONS))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_shipped_kernel_stays_within_its_budget(measurements, variant):
    found = measurements[variant]
    assert found.shared <= SHARED[variant.architecture]
    assert 0 < found.registers <= REGISTERS[variant.architecture]
    assert found.spilled == 0


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.precision != "ieee"], ids=str)
def test_reduced_precision_uses_tensor_cores(measurements, variant):
    # linear_error has two products, each with its own instructions.
    assert measurements[variant].tensor_core >= (2 if variant.operation == "linear_error" else 1)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.precision == "ieee"], ids=str)
def test_ieee_products_use_no_tensor_cores_that_round_to_tf32(measurements, variant):
    if variant.architecture != "gfx942":  # whose matrix cores multiply float32 exactly
        assert measurements[variant].tensor_core == 0


def test_a_kernel_that_spills_is_seen_to():
    two_warps = Variant("linear_predict", "sm_80", "bfloat16", "half", "large", "identity", warps=2)
    assert measure([two_warps])[two_warps].spilled > 0
