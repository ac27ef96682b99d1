"""What a run ran on."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["machine_facts", "set_up", "versions"]

PACKAGES = ("pccompile", "torch", "triton", "numpy", "jax", "jaxlib", "equinox", "optax", "jpc", "pcx")
SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "XLA_", "TORCHINDUCTOR_", "TORCH_COMPILE", "PCCOMPILE_", "CUDA_")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
CPUS = Path("/sys/devices/system/cpu")


def machine_facts(device: str) -> dict[str, Any]:
    """Processor, memory, operating system, GPU and driver, and PyTorch's settings that matter for speed."""
    facts: dict[str, Any] = {
        "device": device,
        "processor": _processor(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "cores_used": _usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # how busy others keep the machine
        "python": platform.python_version(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS)},
    }
    if device == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        }
    return facts


def versions() -> dict[str, str]:
    """Versions of the packages that take part, and the repository's commit."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found["torch"] = torch.__version__
    root = str(Path(__file__).parent)
    commit = _output("git", "-C", root, "rev-parse", "HEAD")
    if commit:
        changed = _output("git", "-C", root, "status", "--porcelain", "--untracked-files=no")
        found["commit"] = commit + (" with changes" if changed else "")
    return found


def set_up(device: str, threads: int) -> None:
    """Set what the whole process computes with: float32 as it is, and on a CPU so many threads and cores."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if device == "cpu":
        _pin(threads)
        _keep_freed_memory()
        torch.set_num_threads(threads)


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next allocation, for all that the process runs.

    By default it hands the end of the heap back to the system whenever enough of it is free, and takes a page fault for
    each page of it again: hundreds a step or none, by chance of the order in which a step allocates and frees.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(parameter, value)


def _pin(threads: int) -> None:
    """Give the process as many cores as it has threads, each a core of its own as far as there are enough.

    Libraries with thread pools of their own (XLA) then use no more of the machine than PyTorch does.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = sorted(os.sched_getaffinity(0))
    siblings: dict[str, int] = {}
    for cpu in allowed:
        siblings.setdefault(_core_of(cpu), cpu)
    first = sorted(siblings.values())
    os.sched_setaffinity(0, [*first, *(cpu for cpu in allowed if cpu not in first)][:threads])


def _core_of(cpu: int) -> str:
    try:
        return (CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
