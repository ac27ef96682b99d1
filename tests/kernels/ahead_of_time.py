"""Compiles what launches would compile, for GPUs that need not be there, and reads what it uses from the machine code.

Run as a program, in a process of its own (an interpreted kernel cannot be compiled): reads a JSON list of cases from
standard input, and writes the measurements of each one's kernels.
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
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from recorded import Case, Launched, recorded

TENSOR_CORE = {
    "sm_80": r"\bmma\.sync",
    "sm_90": r"\b(wgmma\.mma_async|mma\.sync)",
    "sm_100": r"\b(tcgen05\.mma|mma\.sync)",
    "gfx942": r"\bv_mfma_",
}
WARP_GROUP = {"sm_90": r"\bwgmma\.mma_async", "sm_100": r"\btcgen05\.mma"}


@dataclass(frozen=True)
class Measurement:
    """What a compiled kernel uses: bytes of shared memory per program, registers per thread, bytes spilled per thread,
    the number of tensor-core instructions in its assembly, and how many of them are those of whole groups of warps."""

    kernel: str
    shared: int
    registers: int
    spilled: int
    tensor_core: int
    warp_group: int


def measure(cases: list[Case]) -> dict[Case, list[Measurement]]:
    """What the kernels that each case launches use, compiled in processes without the interpreter.

    Raises:
        RuntimeError: one did not compile; the compiler's words are in it.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(case) for case in cases]),
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = [[Measurement(**fields) for fields in kernels] for kernels in json.loads(done.stdout)]
    return dict(zip(cases, found, strict=True))


def _compile(case: Case) -> list[Measurement]:
    launch = import_module(f"launches_{case.operation}").LAUNCHES[case.launch]
    return [_measured(launched, case.architecture) for launched in recorded(launch, case)]


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
    assembly = compiled.asm["ptx" if cuda else "amdgcn"]
    registers, spilled = _cuda_usage(compiled.asm["cubin"]) if cuda else _amd_usage(assembly)
    tensor_core = len(re.findall(TENSOR_CORE[architecture], assembly))
    warp_group = len(re.findall(WARP_GROUP[architecture], assembly)) if architecture in WARP_GROUP else 0
    return Measurement(launched.kernel.__name__, compiled.metadata.shared, registers, spilled, tensor_core, warp_group)


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
    import torch  # noqa: F401 (once, before the processes part)

    import pccompile.kernels  # noqa: F401

    cases = [Case(**fields) for fields in json.load(sys.stdin)]
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool:
        json.dump([[asdict(found) for found in kernels] for kernels in pool.map(_compile, cases)], sys.stdout)
