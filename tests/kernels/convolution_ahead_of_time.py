"""Compiles the convolution kernels for GPUs that need not be there, with the arguments of a launch on meta tensors.

Run as a program, in a process of its own (an interpreted kernel cannot be compiled): reads a JSON list of variants from
standard input and writes one of their measurements to standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

from ahead_of_time import TENSOR_CORE, Measurement, _amd_usage, _cuda_usage

TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int8": "i8", "int32": "i32"}


@dataclass(frozen=True)
class Variant:
    """One compiled kernel: an operation under one of its configurations, as a launch would specialise it."""

    operation: str
    architecture: str
    dtype: str
    precision: str
    size: str
    activation: str = "gelu"
    pool: str = "none"
    channels: int = 64
    stride: int = 1
    accumulate: bool = True
    wide: bool = False

    def __str__(self) -> str:
        fields = (self.operation, self.architecture, self.dtype, self.precision, self.size, self.activation, self.pool)
        options = "".join(f"-{name}" for name in ("accumulate", "wide") if getattr(self, name))
        return "-".join(fields) + f"-{self.channels}-{self.stride}" + options


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


def _launch_of(variant: Variant) -> tuple[object, tuple[object, ...], dict[str, object]]:
    """The kernel, the arguments and the constants of a launch on (16, channels, 64, 64), channels last, by 3 x 3."""
    import torch

    from pccompile.kernels.conv_error import configurations as error_configurations
    from pccompile.kernels.conv_error.kernel import conv_error_arguments, conv_error_kernel
    from pccompile.kernels.conv_predict import configurations as predict_configurations
    from pccompile.kernels.conv_predict.kernel import conv_predict_arguments, conv_predict_kernel
    from pccompile.kernels.conv_step import configurations as step_configurations
    from pccompile.kernels.conv_step.kernel import conv_step_arguments, conv_step_kernel
    from pccompile.kernels.convolution_geometry import geometry_of, kept_residual

    def image(*size: int, dtype: str = variant.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=getattr(torch, dtype), device="meta", memory_format=torch.channels_last)

    direct = variant.size == "direct"
    groups = variant.channels if direct else 1
    x, weight = image(16, variant.channels, 64, 64), image(64, variant.channels // groups, 3, 3)
    bias = torch.empty(64, dtype=x.dtype, device="meta")
    window = [1, 1, 1, 1] if variant.pool == "none" else [2, 2, 2, 2]
    geometry = geometry_of("test", x, weight, [variant.stride] * 2, [1, 1], [1, 1], groups, variant.pool, window)
    shape = (16, 64, *geometry.pooled(64, 64))
    output, residual = image(*shape), image(*geometry.residual_shape(shape))
    argmax = image(*shape, dtype="int8") if variant.pool == "max" else None
    precision = "ieee" if variant.precision == "half" else variant.precision
    options = {"negative_slope": 0.01, "input_precision": precision, "architecture": variant.architecture}
    tables = {
        "conv_predict": predict_configurations,
        "conv_error": error_configurations,
        "conv_step": step_configurations,
    }
    table = tables[variant.operation].CONFIGURATIONS
    options["configuration"] = table[variant.architecture][variant.precision][variant.size]
    if variant.operation == "conv_predict":
        kept = None if kept_residual(variant.activation, variant.pool) == "nothing" else residual
        kernel = conv_predict_kernel
        launch = conv_predict_arguments(x, weight, bias, output, kept, argmax, geometry, variant.activation, **options)
    elif variant.operation == "conv_error":
        kernel = conv_error_kernel
        options |= {f"accumulate_{what}": variant.accumulate for what in ("parent", "weight", "bias")}
        options |= {"parent_error": x, "weight_gradient": weight, "bias_gradient": bias}
        launch = conv_error_arguments(output, residual, argmax, x, weight, geometry, variant.activation, **options)
    else:
        kernel = conv_step_kernel
        if variant.accumulate:
            options |= {"siblings": x, "parent_error": x}
        launch = conv_step_arguments(
            x, weight, bias, output, output, residual, argmax, image(*x.shape), geometry, variant.activation, **options
        )
    _, arguments, constants = launch
    return kernel, arguments, constants | {"WIDE": variant.wide}


def _compile(variant: Variant) -> Measurement:
    import re

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, arguments, constants = _launch_of(variant)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    names = kernel.arg_names
    signature = dict.fromkeys(constants, "constexpr")
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for index, value in enumerate(arguments):
        signature[names[index]] = _specialised(value, (index,), constexprs, attributes)
    source = ASTSource(
        fn=kernel, signature={name: signature[name] for name in names}, constexprs=constexprs, attrs=attributes
    )
    if variant.architecture.startswith("sm_"):
        target = GPUTarget("cuda", int(variant.architecture[3:]), 32)
    else:
        target = GPUTarget("hip", variant.architecture, 64)
    compiled = triton.compile(source, target=target, options=options)
    assembly = compiled.asm["ptx" if target.backend == "cuda" else "amdgcn"]
    registers, spilled = _cuda_usage(compiled.asm["cubin"]) if target.backend == "cuda" else _amd_usage(assembly)
    tensor_core = len(re.findall(TENSOR_CORE[variant.architecture], assembly))
    return Measurement(compiled.metadata.shared, registers, spilled, tensor_core)


def _specialised(value, path, constexprs, attributes):
    """An argument's type, as Triton's launcher would specialise it: ones are constants, multiples of 16 are known."""
    if isinstance(value, tuple):
        return tuple(_specialised(each, (*path, i), constexprs, attributes) for i, each in enumerate(value))
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int):
        if value == 1:
            constexprs[path] = 1
            return "constexpr"
        if value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return "i32" if abs(value) < 2**31 else "i64"
    attributes[path] = [["tt.divisibility", 16]]
    return "*" + TYPES[str(value.dtype).removeprefix("torch.")]


if __name__ == "__main__":
    variants = [Variant(**fields) for fields in json.load(sys.stdin)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        json.dump([asdict(measurement) for measurement in pool.map(_compile, variants)], sys.stdout)
