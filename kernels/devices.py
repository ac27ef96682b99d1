"""Which table of configurations a device reads, and whether kernels are interpreted."""

from __future__ import annotations

from typing import Literal

import torch
import triton

from pccompile.errors import UsageError
from pccompile.kernels.tiles import grouped_tile

__all__ = [
    "ARCHITECTURES",
    "CACHE_BYTES",
    "PROCESSORS",
    "Architecture",
    "architecture_of",
    "convolution_precision",
    "interpreted",
    "launch_options",
    "precision_of",
    "product_precision",
    "recurrence_precision",
    "registers_of",
]

Architecture = Literal["sm_80", "sm_90", "sm_100", "gfx942", "interpreter"]
ARCHITECTURES: tuple[Architecture, ...] = ("sm_80", "sm_90", "sm_100", "gfx942")

# Multiprocessors (compute units) of each architecture's largest part: a grid smaller than this leaves some idle. A
# table, not a query: the choice of tiles, and so the rounding of a sum, is then the same on every part.
PROCESSORS: dict[Architecture, int] = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304, "interpreter": 1}

# The last cache before memory of each architecture's largest part, for the same reason a table: L2, and AMD's Infinity
# Cache. The interpreter's is small enough for the tests to overflow it.
CACHE_BYTES: dict[Architecture, int] = {
    "sm_80": 40 * 2**20,
    "sm_90": 50 * 2**20,
    "sm_100": 126 * 2**20,
    "gfx942": 256 * 2**20,
    "interpreter": 16 * 2**10,
}


def interpreted() -> bool:
    """Whether the kernels run under Triton's interpreter: TRITON_INTERPRET=1 was set when they were imported."""
    return not isinstance(grouped_tile, triton.runtime.JITFunction)


def architecture_of(device: torch.device) -> Architecture:
    """The table of configurations that fits a device; for one that has none, that of its closest relative.

    Raises:
        UsageError: the device is not a GPU and the kernels are not interpreted.
    """
    if interpreted():
        return "interpreter"
    if device.type != "cuda":
        raise UsageError(
            f"Triton kernels cannot run on {device}",
            cure="move the tensors to a GPU, use the reference, or set TRITON_INTERPRET=1 before importing Triton",
        )
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    # sm_120 lacks the tensor memory of sm_100, and like sm_86 and sm_89 has 99 KiB of shared memory: sm_80's table
    # stays below that.
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_80")  # type: ignore[return-value]


def launch_options(architecture: Architecture, warps: int, stages: int) -> dict[str, int]:
    """The options of a launch of a kernel that would rather have all the registers there are than spill.

    Args:
        warps: warps (wavefronts) per program.
        stages: depth of the software pipelines.
    """
    registers = registers_of(architecture)
    limit = {} if registers is None else {"maxnreg": registers}
    return {"num_warps": warps, "num_stages": stages, **limit}


def registers_of(architecture: Architecture) -> int | None:
    """How many registers a thread may have; None leaves it to the compiler.

    That would, on NVIDIA's GPUs, rather spill than use what keeps other programs off the multiprocessor, even where
    there are none. AMD's has no limit.
    """
    return 255 if architecture.startswith("sm_") else None


def precision_of(dtype: torch.dtype, input_precision: str) -> str:
    """The arithmetic of a kernel's products: "half", "tf32" or "ieee", the key of the configuration tables."""
    return "half" if dtype in (torch.bfloat16, torch.float16) else input_precision


def product_precision() -> str:
    """How PyTorch is set to form float32 products on a GPU at present, as the kernels call it: "tf32" or "ieee"."""
    return _first_set(torch.backends.cuda.matmul.fp32_precision)


def convolution_precision() -> str:
    """How it is set to form those of convolutions."""
    return _first_set(torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.fp32_precision)


def recurrence_precision() -> str:
    """How it is set to form those of recurrent networks."""
    return _first_set(torch.backends.cudnn.rnn.fp32_precision, torch.backends.cudnn.fp32_precision)


def _first_set(*settings: str) -> str:
    """The precision that is set, where "none" leaves it to the next setting, and at last to that of all operations."""
    chosen = next((setting for setting in (*settings, torch.backends.fp32_precision) if setting != "none"), "ieee")
    return "tf32" if chosen == "tf32" else "ieee"
