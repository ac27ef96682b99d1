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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

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


def _constants(variant: Variant) -> tuple[object, dict[str, object], object]:
    """The kernel, the constants that the variant's launch would pass, and its configuration."""
    from pccompile.kernels.activations import activation_named
    from pccompile.kernels.linear_error import configurations as error_configurations
    from pccompile.kernels.linear_error.kernel import linear_error_kernel
    from pccompile.kernels.linear_predict import configurations as predict_configurations
    from pccompile.kernels.linear_predict.kernel import linear_predict_kernel

    constants: dict[str, object] = {
        "ACTIVATION": variant.activation,
        "INPUT_PRECISION": "ieee" if variant.precision == "half" else variant.precision,
        "WIDE": variant.wide,
        "UPCAST": False,
    }
    if variant.operation == "linear_predict":
        chosen = predict_configurations.CONFIGURATIONS[variant.architecture][variant.precision][variant.size]
        keep = activation_named(variant.activation).residual == "preactivation"
        constants |= {"HAS_BIAS": True, "KEEP_PREACTIVATION": keep}
        blocks = ("block_batch", "block_out", "block_in", "group")
        kernel = linear_predict_kernel
    else:
        chosen = error_configurations.CONFIGURATIONS[variant.architecture][variant.precision][variant.size]
        constants |= {f"ACCUMULATE_{what}": variant.accumulate for what in ("PARENT", "WEIGHT", "BIAS")}
        constants |= {"PARENT_ERROR": True, "WEIGHT_GRADIENT": True, "BIAS_GRADIENT": True}
        blocks = ("parent_batch", "parent_in", "parent_out", "gradient_out", "gradient_in", "gradient_batch", "group")
        kernel = linear_error_kernel
    constants |= {name.upper(): getattr(chosen, name) for name in blocks}
    return kernel, constants, chosen


def _compile(variant: Variant) -> Measurement:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constants, chosen = _constants(variant)
    # Contiguous tensors: the stride of every tensor's last dimension is one, and a constant, as a launch makes it.
    unit = {"bias_stride", "bias_gradient_stride"} | {
        name for name in kernel.arg_names if re.search(r"_stride$", name) and _is_last_dimension(name, kernel.arg_names)
    }
    constants |= dict.fromkeys(unit & set(kernel.arg_names), 1)
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + TYPES[variant.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif name in ("gain", "negative_slope"):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    if variant.architecture.startswith("sm_"):
        target = GPUTarget("cuda", int(variant.architecture[3:]), 32)
    else:
        target = GPUTarget("hip", variant.architecture, 64)
    options = {"num_warps": variant.warps or chosen.warps, "num_stages": chosen.stages}
    compiled = triton.compile(source, target=target, options=options)
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
