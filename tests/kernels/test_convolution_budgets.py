"""The convolutions, under every shipped configuration, compile for every architecture and stay within their budget."""

from itertools import cycle, product

import pytest
from convolution_ahead_of_time import Variant, measure
from test_ahead_of_time import REGISTERS, SHARED

from pccompile.kernels import ACTIVATIONS
from pccompile.kernels.conv_error import configurations as error_configurations
from pccompile.kernels.conv_predict import configurations as predict_configurations
from pccompile.kernels.conv_step import configurations as step_configurations
from pccompile.kernels.devices import ARCHITECTURES

TABLES = {
    "conv_predict": predict_configurations.CONFIGURATIONS,
    "conv_error": error_configurations.CONFIGURATIONS,
    "conv_step": step_configurations.CONFIGURATIONS,
}
# What takes turns over the configurations: pooling, channels, stride and int64 offsets.
LAYERS = (("none", 64, 1, False), ("max", 64, 1, False), ("none", 3, 2, False), ("average", 64, 2, True))


def shipped() -> list[Variant]:
    """Every configuration, each with one of the activations, layers and half precisions; direct ones in one."""
    variants = []
    for operation, table in TABLES.items():
        activations, layers, dtypes = cycle(ACTIVATIONS), cycle(LAYERS), cycle(("bfloat16", "float16", "bfloat16"))
        for architecture, precision in product(ARCHITECTURES, ("half", "tf32", "ieee")):
            for size in table[architecture][precision]:
                pool, channels, stride, wide = next(layers)
                if size == "direct" and precision != "half":
                    continue
                variants.append(
                    Variant(
                        operation,
                        architecture,
                        next(dtypes) if precision == "half" else "float32",
                        precision,
                        size,
                        next(activations),
                        pool,
                        64 if size == "direct" else channels,
                        stride,
                        accumulate=size != "small",
                        wide=wide,
                    )
                )
    return variants


VARIANTS = shipped()


@pytest.fixture(scope="module")
def measurements():
    return measure(VARIANTS)


def test_the_variants_cover_every_activation_and_layer_of_each_operation():
    assert {(v.operation, v.activation) for v in VARIANTS} == set(product(TABLES, ACTIVATIONS))
    found = {(v.operation, v.pool, v.channels, v.stride, v.wide) for v in VARIANTS}
    assert {(operation, *layer) for operation, layer in product(TABLES, LAYERS)} <= found


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_shipped_convolution_stays_within_its_budget(measurements, variant):
    found = measurements[variant]
    assert found.shared <= SHARED[variant.architecture]
    assert 0 < found.registers <= REGISTERS[variant.architecture]
    assert found.spilled == 0


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.precision != "ieee" and v.size != "direct"], ids=str)
def test_reduced_precision_uses_tensor_cores(measurements, variant):
    # conv_error and conv_step have two products, each with its own instructions.
    assert measurements[variant].tensor_core >= (1 if variant.operation == "conv_predict" else 2)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.precision == "ieee"], ids=str)
def test_ieee_products_use_no_tensor_cores_that_round_to_tf32(measurements, variant):
    if variant.architecture != "gfx942":  # whose matrix cores multiply float32 exactly
        assert measurements[variant].tensor_core == 0


@pytest.mark.parametrize("operation", TABLES)
def test_every_architecture_has_every_size_for_every_arithmetic(operation):
    sizes = {"product", "direct"} if operation == "conv_step" else {"large", "small", "direct"}
    for architecture, precision in product(ARCHITECTURES, ("half", "tf32", "ieee")):
        assert set(TABLES[operation][architecture][precision]) == sizes


def test_large_tiles_are_for_launches_that_fill_the_device():
    for module in (predict_configurations, error_configurations):
        sizes = module.CONFIGURATIONS["sm_90"]["half"]
        assert module.configuration_for("sm_90", "half", 256 * 32 * 32, 64, 1, direct=False) == sizes["large"]
        assert module.configuration_for("sm_90", "half", 4 * 8 * 8, 64, 1, direct=False) == sizes["small"]
        assert module.configuration_for("sm_90", "half", 256 * 32 * 32, 1, 64, direct=True) == sizes["direct"]


def test_gradients_are_shared_by_as_many_programs_as_fill_the_device():
    assert error_configurations.splits_for("sm_90", tiles=9, row_tiles=8192) == 29
    assert error_configurations.splits_for("sm_90", tiles=9, row_tiles=32) == 4
    assert error_configurations.splits_for("sm_90", tiles=1000, row_tiles=8192) == 1
    assert error_configurations.splits_for("sm_90", tiles=9, row_tiles=3) == 1
    assert error_configurations.splits_for("gfx942", tiles=9, row_tiles=8192) == 1
