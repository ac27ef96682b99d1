"""Compile time: the first training step in a fresh process, with empty caches on disk and with filled ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["CACHES", "cold_and_warm"]

CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "PCCOMPILE_CACHE_DIR")
ROOT = Path(__file__).parent.parent.parent
PATIENCE = 1800.0


def cold_and_warm(model: str, rule: str, backend: str, device: str, threads: int) -> tuple[float, float]:
    """Seconds until the first training step is done, from empty caches, and then from those it left.

    Raises:
        RuntimeError: the process failed; the end of what it said.
    """
    arguments = (model, rule, backend, device, str(threads))
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: str(Path(folder) / name.lower()) for name in CACHES}
        return _first_step(arguments, caches), _first_step(arguments, caches)


def _first_step(arguments: tuple[str, ...], caches: Mapping[str, str]) -> float:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "bench.steps.first_step", *arguments]
    environment = {**os.environ, **caches, "PYTHONPATH": path}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"no first step within {PATIENCE:.0f} s") from error
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:] or f"exit status {done.returncode}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])
