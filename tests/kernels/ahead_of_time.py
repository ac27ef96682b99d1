"""Compiles the kernels for GPUs that need not be there, and reads what they use from the machine code.

Run as a program, in a process of its own (an interpreted kernel cannot be compiled): reads a JSON list of variants from
standard input and writes one of their measurements to standard output.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
TENSOR_CORE = {
    "sm_80": r"\bmma\.sync",
    "sm_90": r"\b(wgmma\.mma_async|mma\.sync)",
    "sm_100": r"\b(tcgen05\.mma|mma\.sync)",
    "gfx942": r"\bv_mfma_",
}


@dataclass(frozen=True)
class Variant:
    """One compiled kernel: an operation under one of its configurations, as a launch would specialise it; with another
    number of warps where one is given."""

    operation: str
    architecture: str
    dtype: str
    precision: str
    size: str
    activation: str = "gelu"
    accumulate: bool = True
    wide: bool = False
    warps: int = 0

    def __str__(self) -> str:
        options = "".join(f"-{name}" for name in ("accumulate", "wide") if getattr(self, name))
        fields = (self.operation, self.architecture, self.dtype, self.precision, self.size, self.activation)
        return "-".join(fields) + options


@dataclass(frozen=True)
class Measurement:
    """What a compiled kernel uses: bytes of shared memory per program, registers per thread, bytes spilled per thread,
    and the number of tensor-core instructions in its assembly."""

    shared: int
    registers: int
    spilled: int
    tensor_core: int


def measure(variants: list[Variant]) -> dict[Variant, Measurement]:
    """Compile the variants in processes without the interpreter.

    Raises:
        RuntimeError: one did not compile; the compiler's words are in it.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(variant) for variant in variants]),
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    measurements = [Measurement(**fields) for fields in json.loads(done.stdout)]
    return dict(zip(variants, measurements, strict=True))


@dataclass(frozen=True)
class Launch:
    """What a launch hands to the compiler.

    Attributes:
        kernel: the kernel.
        constants: its constants.
        options: warps, stages, and whatever else a launch is given.
        types: of the arguments that have neither the variant's dtype nor, as integers, 32 bits.
    """

    kernel: Any
    constants: dict[str, object]
    options: dict[str, object]
    types: dict[str, str] = field(default_factory=lambda: dict.fromkeys(("gain", "negative_slope"), "fp32"))


def _shared_constants(variant: Variant) -> dict[str, object]:
    return {
        "ACTIVATION": variant.activation,
        "INPUT_PRECISION": "ieee" if variant.precision == "half" else variant.precision,
        "WIDE": variant.wide,
        "UPCAST": False,
    }


def _options(variant: Variant, chosen: Any) -> dict[str, object]:
    return {"num_warps": variant.warps or chosen.warps, "num_stages": chosen.stages}


def _linear_predict(variant: Variant) -> Launch:
    from pccompile.kernels.activations import activation_named
    from pccompile.kernels.linear_predict.configurations import CONFIGURATIONS
    from pccompile.kernels.linear_predict.kernel import linear_predict_kernel

    chosen = CONFIGURATIONS[variant.architecture][variant.precision][variant.size]
    keep = activation_named(variant.activation).residual == "preactivation"
    constants = _shared_constants(variant) | {"HAS_BIAS": True, "KEEP_PREACTIVATION": keep}
    blocks = ("block_batch", "block_out", "block_in", "group")
    constants |= {name.upper(): getattr(chosen, name) for name in blocks}
    return Launch(linear_predict_kernel, constants, _options(variant, chosen))


def _linear_error(variant: Variant) -> Launch:
    from pccompile.kernels.linear_error.configurations import CONFIGURATIONS
    from pccompile.kernels.linear_error.kernel import linear_error_kernel

    chosen = CONFIGURATIONS[variant.architecture][variant.precision][variant.size]
    constants = _shared_constants(variant)
    constants |= {f"ACCUMULATE_{what}": variant.accumulate for what in ("PARENT", "WEIGHT", "BIAS")}
    constants |= {"PARENT_ERROR": True, "WEIGHT_GRADIENT": True, "BIAS_GRADIENT": True}
    blocks = ("parent_batch", "parent_in", "parent_out", "gradient_out", "gradient_in", "gradient_batch", "group")
    constants |= {name.upper(): getattr(chosen, name) for name in blocks}
    return Launch(linear_error_kernel, constants, _options(variant, chosen))


def _linear_step(variant: Variant) -> Launch:
    """Sizes are "narrow", with as many inputs as that may have, and "wide"."""
    from pccompile.kernels.activations import ACTIVATIONS
    from pccompile.kernels.linear_step.configurations import CONFIGURATIONS
    from pccompile.kernels.linear_step.kernel import linear_step_kernel

    chosen = CONFIGURATIONS[variant.architecture][variant.precision]
    narrow = variant.size == "narrow"
    constants = _shared_constants(variant) | {
        "FROM_OUTPUT": ACTIVATIONS[variant.activation].residual == "output",
        "HAS_BIAS": True,
        "KEEP_PREDICTION": True,
        "ACCUMULATE": variant.accumulate,
        "NARROW": narrow,
        "BLOCK_BATCH": chosen.block_batch,
        "BLOCK_OUT": chosen.narrow_out if narrow else chosen.block_out,
        "BLOCK_IN": chosen.narrow if narrow else chosen.block_in,
        "BLOCK_SUM": chosen.block_sum,
    }
    return Launch(linear_step_kernel, constants, _options(variant, chosen))


_SWEEP_TYPES = (
    dict.fromkeys(("values_ptr", "errors_ptr", "drives_ptr", "moments_ptr", "energies_ptr", "upstream_ptr"), "*fp32")
    | dict.fromkeys(("step_size", "momentum", "loss_factor", "negative_slope", "factor"), "fp32")
    | {"table_ptr": "*i64", "counter_ptr": "*i32"}
)


def _strict_sweep(variant: Variant) -> Launch:
    """Sizes are "tall", in tiles of the batch, and "flat", cooperatively; "accumulate" stands for every option on."""
    from pccompile.kernels.activations import ACTIVATIONS
    from pccompile.kernels.strict_sweep.configurations import CONFIGURATIONS
    from pccompile.kernels.strict_sweep.kernel import strict_sweep_kernel
    from pccompile.kernels.strict_sweep.plan import Plan

    chosen = CONFIGURATIONS[variant.architecture][variant.precision][variant.size]
    activations = (variant.activation, "identity")
    plan = Plan(
        activations=activations,
        slopes_from_output=tuple(ACTIVATIONS[name].residual == "output" for name in activations),
        loss="cross_entropy" if variant.accumulate else "squared_error",
        averaged=variant.accumulate,
        free_output=variant.accumulate,
        momentum=variant.accumulate,
        held=variant.accumulate,
        record=variant.accumulate,
        aligned=True,
        input_precision="ieee" if variant.precision == "half" else variant.precision,
        wide=variant.wide,
        upcast=False,
        block_batch=chosen.block_batch,
        block_out=chosen.block_out,
        block_sum=chosen.block_sum,
    )
    cooperative = variant.size == "flat"
    types = _SWEEP_TYPES | ({"target_ptr": "*i64"} if variant.accumulate else {})
    constants = {"PLAN": plan, "COOPERATIVE": cooperative}
    return Launch(strict_sweep_kernel, constants, {**chosen.options, "launch_cooperative_grid": cooperative}, types)


def _chain_gradients(variant: Variant) -> Launch:
    from pccompile.kernels.strict_sweep.configurations import GRADIENTS
    from pccompile.kernels.strict_sweep.gradients import chain_gradients_kernel
    from pccompile.kernels.strict_sweep.plan import GradientPlan

    chosen = GRADIENTS[variant.architecture][variant.precision]
    plan = GradientPlan(
        upstream=variant.accumulate,
        input_precision="ieee" if variant.precision == "half" else variant.precision,
        wide=variant.wide,
        upcast=False,
        block_out=chosen.block_out,
        block_in=chosen.block_in,
        block_batch=chosen.block_batch,
    )
    return Launch(chain_gradients_kernel, {"PLAN": plan}, _options(variant, chosen), _SWEEP_TYPES)


LAUNCHES: dict[str, Callable[[Variant], Launch]] = {
    "linear_predict": _linear_predict,
    "linear_error": _linear_error,
    "linear_step": _linear_step,
    "strict_sweep": _strict_sweep,
    "chain_gradients": _chain_gradients,
}


def _compile(variant: Variant) -> Measurement:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch = LAUNCHES[variant.operation](variant)
    names, constants = launch.kernel.arg_names, dict(launch.constants)
    # Contiguous tensors: the stride of every tensor's last dimension is one, and a constant, as a launch makes it.
    unit = {"bias_stride", "bias_gradient_stride"} | {
        name for name in names if re.search(r"_stride$", name) and _is_last_dimension(name, names)
    }
    constants |= dict.fromkeys(unit & set(names), 1)
    signature, attributes = {}, {}
    for index, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        pointer = name.endswith("_ptr")
        signature[name] = launch.types.get(name, "*" + TYPES[variant.dtype] if pointer else "i32")
        if signature[name] != "fp32" and name not in ("layers", "steps", "ignore_index"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    if variant.architecture.startswith("sm_"):
        target = GPUTarget("cuda", int(variant.architecture[3:]), 32)
    else:
        target = GPUTarget("hip", variant.architecture, 64)
    compiled = triton.compile(source, target=target, options=launch.options)
    assembly = compiled.asm["ptx" if target.backend == "cuda" else "amdgcn"]
    registers, spilled = _cuda_usage(compiled.asm["cubin"]) if target.backend == "cuda" else _amd_usage(assembly)
    tensor_core = len(re.findall(TENSOR_CORE[variant.architecture], assembly))
    return Measurement(compiled.metadata.shared, registers, spilled, tensor_core)


def _is_last_dimension(name: str, names: list[str]) -> bool:
    """Whether a stride's argument is the second of its tensor's two."""
    tensor = _strided_tensor(name)
    strides = [other for other in names if other.endswith("_stride") and _strided_tensor(other) == tensor]
    return len(strides) == 2 and strides[1] == name


def _strided_tensor(name: str) -> str:
    """weight_gradient_out_stride -> weight_gradient."""
    return name.removesuffix("_stride").rpartition("_")[0]


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes spilled) per thread of the largest function."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    rows = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing.stdout)
    assert rows, listing.stdout
    return max(int(row[0]) for row in rows), max(int(row[1]) + int(row[2]) for row in rows)


def _amd_usage(assembly: str) -> tuple[int, int]:
    """(vector registers, bytes of scratch) per thread."""
    registers, scratch = (
        max(int(value) for value in re.findall(rf"\.{field}:\s+(\d+)", assembly))
        for field in ("vgpr_count", "private_segment_fixed_size")
    )
    return registers, scratch


if __name__ == "__main__":
    variants = [Variant(**fields) for fields in json.load(sys.stdin)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        json.dump([asdict(measurement) for measurement in pool.map(_compile, variants)], sys.stdout)
