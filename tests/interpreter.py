"""Runs a folder of tests under Triton's interpreter, in a process of its own: TRITON_INTERPRET is read at import."""

import os
import subprocess
import sys
from pathlib import Path

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def left_out(folder: str) -> list[str]:
    """The folder where kernels cannot run, for conftest's `collect_ignore`."""
    return [] if INTERPRETED or torch.cuda.is_available() else [folder]


def assert_passes(folder: Path) -> None:
    """Run the tests of a folder and fail with what they print."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-n", str(os.cpu_count()), folder.name]
    environment |= {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout or "[100%]" in done.stdout, done.stdout
