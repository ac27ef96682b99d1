"""Tests of the kernels and back ends on the GPU, a file of tests at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.state import ROOT
from bench.gpu.work import Work

__all__ = ["files_of_tests", "run_tests"]

FOLDERS = ("tests/kernels/numerics", "tests/backends")
MOST_PROCESSES = 8
NOTHING_COLLECTED = 5
LONGEST = 3600.0


def files_of_tests(root: Path = ROOT) -> list[Path]:
    """The files of tests that use a GPU where there is one."""
    found = sorted(path for folder in FOLDERS for path in (root / folder).rglob("test_*.py"))
    return [path for path in found if not path.stem.endswith("_interpreted")]


def run_tests(path: Path) -> Callable[[Work], None]:
    """A part that runs a file of tests in several processes, and fails with what they said."""

    def run(work: Work) -> None:
        work.begin(20.0)
        processes = min(MOST_PROCESSES, os.cpu_count() or 1)
        several = ["-n", str(processes)] if find_spec("xdist") and processes > 1 else []
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=20", *several, str(path)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        code, said = _finished(command, environment, work.left)
        last = said.strip().splitlines()[-1:] or ["nothing was said"]
        work.add(path.name, {"exit": code, "summary": last[0]})
        if code == NOTHING_COLLECTED:
            work.fail(f"{path.name}: no test ran")
        elif code is None:
            work.fail(f"{path.name}: not done in time: {said[-1500:]}")
        elif code:
            work.fail(f"{path.name}: {last[0]}: {' '.join(said[-3000:].split())}")

    return run


def _finished(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int | None, str]:
    """The exit status, None where it had to be ended, and what was said."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    try:
        said, _ = process.communicate(timeout=min(max(seconds, 1.0), LONGEST))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        return None, said
    return process.returncode, said
