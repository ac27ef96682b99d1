"""Compiles what a launch would compile, for GPUs that need not be there: the launch's own arguments are recorded.

A folder of kernels has a module `launches_OPERATION.py` beside this one: its LAUNCHES are functions by name, each of
which calls launch functions on tensors of a dtype on the meta device. Run as a program, in a process of its own (an
interpreted kernel cannot be compiled): reads a JSON list of recordings from standard input, and writes the measurements
of each one's kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from unittest.mock import patch

from ahead_of_time import Measurement, _amd_usage, _cuda_usage

KIB = 1024
# What one program may have; sm_80's tables serve sm_86, sm_89 and sm_120 as well, hence less than its 163 KiB.
SHARED = {"sm_80": 99 * KIB, "sm_90": 227 * KIB, "sm_100": 227 * KIB, "gfx942": 64 * KIB}
REGISTERS = {"sm_80": 255, "sm_90": 255, "sm_100": 255, "gfx942": 512}
TYPES = {
    "torch.float32": "fp32",
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
    "torch.int64": "i64",
    "torch.int32": "i32",
    "torch.bool": "i1",
}


@dataclass(frozen=True)
class Recording:
    """A launch of an operation, by its name in the operation's LAUNCHES, on an architecture and in a dtype."""

    operation: str
    launch: str
    architecture: str
    dtype: str

    def __str__(self) -> str:
        return "-".join((self.operation, self.launch, self.architecture, self.dtype))


@dataclass(frozen=True)
class Launched:
    """One kernel as it was launched: signature, constants, attributes and options, as Triton's compiler takes them."""

    kernel: object
    signature: dict[str, str]
    constants: dict[str, object]
    attributes: dict[tuple[int], list[list[object]]]
    options: dict[str, int]


def measure_recordings(recordings: list[Recording]) -> dict[Recording, list[Measurement]]:
    """What the kernels of each recording use, compiled in processes without the interpreter.

    Raises:
        RuntimeError: one did not compile; the compiler's words are in it.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(recording) for recording in recordings]),
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = [[Measurement(**fields) for fields in kernels] for kernels in json.loads(done.stdout)]
    return dict(zip(recordings, found, strict=True))


def check_budget(architecture: str, kernels: list[Measurement]) -> None:
    """Check that there is a kernel, and that none exceeds its architecture's shared memory or registers, or spills."""
    assert kernels
    for found in kernels:
        assert found.shared <= SHARED[architecture]
        assert 0 < found.registers <= REGISTERS[architecture]
        assert found.spilled == 0


@contextmanager
def _recorded(architecture: str) -> Iterator[list[Launched]]:
    """Launches go into the list; every device is of that architecture."""
    from triton.runtime import JITFunction

    launched: list[Launched] = []

    def record(kernel, *arguments, grid, warmup, **options):
        constexprs = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
        constants = {name: options.pop(name) for name in list(options) if name in constexprs}
        positional = [name for name in kernel.arg_names if name not in constants]
        launched.append(_specialised(kernel, dict(zip(positional, arguments, strict=True)), constants, options))

    modules = [module for name, module in sys.modules.items() if name.startswith("pccompile.kernels.")]
    with patch.object(JITFunction, "run", record):
        patches = [
            patch.object(m, "architecture_of", lambda _: architecture) for m in modules if "architecture_of" in vars(m)
        ]
        for each in patches:
            each.start()
        try:
            yield launched
        finally:
            for each in patches:
                each.stop()


def _specialised(kernel, arguments, constants, options) -> Launched:
    """As Triton would specialise it: integers that are one are constants, multiples of 16 and tensors are aligned."""
    signature, attributes = {}, {}
    constants = dict(constants)
    for index, name in enumerate(kernel.arg_names):
        value = arguments.get(name)
        if name in constants or (type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants.setdefault(name, value)
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif isinstance(value, int):
            signature[name] = "i64" if abs(value) >= 2**31 else "i32"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "*" + TYPES[str(value.dtype)]
            attributes[(index,)] = [["tt.divisibility", 16]]
    return Launched(kernel, signature, constants, attributes, options)


def _compile(recording: Recording) -> list[Measurement]:
    import torch

    launches = import_module(f"launches_{recording.operation}").LAUNCHES
    with _recorded(recording.architecture) as launched:
        launches[recording.launch](getattr(torch, recording.dtype))
    return [_measured(each, recording.architecture) for each in launched]


def _measured(launched: Launched, architecture: str) -> Measurement:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=launched.kernel, signature=launched.signature, constexprs=launched.constants, attrs=launched.attributes
    )
    cuda = architecture.startswith("sm_")
    target = GPUTarget("cuda", int(architecture[3:]), 32) if cuda else GPUTarget("hip", architecture, 64)
    compiled = triton.compile(source, target=target, options=launched.options)
    registers, spilled = _cuda_usage(compiled.asm["cubin"]) if cuda else _amd_usage(compiled.asm["amdgcn"])
    return Measurement(compiled.metadata.shared, registers, spilled, 0)


if __name__ == "__main__":
    recordings = [Recording(**fields) for fields in json.load(sys.stdin)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        json.dump([[asdict(found) for found in kernels] for kernels in pool.map(_compile, recordings)], sys.stdout)
