"""Tests of the kernels and back ends on the GPU, a file of tests at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.gpu.state import ROOT
from bench.gpu.work import OutOfTime, Work

__all__ = ["files_of_tests", "run_tests"]

FOLDERS = ("tests/kernels/numerics", "tests/backends")
MOST_PROCESSES = 8
NOTHING_COLLECTED = 5
LONGEST = 3600.0
NOTED_EVERY = 5.0  # seconds


def files_of_tests(root: Path = ROOT) -> list[Path]:
    """The files of tests that use a GPU where there is one."""
    found = sorted(path for folder in FOLDERS for path in (root / folder).rglob("test_*.py"))
    return [path for path in found if not path.stem.endswith("_interpreted")]


def run_tests(path: Path) -> Callable[[Work], None]:
    """A part that runs a file of tests in several processes, and fails with what they said.

    Its items are the tests that have passed, noted every few seconds: they are left out of the next run.
    """

    def run(work: Work) -> None:
        work.begin(20.0)
        before = len(work.items)
        code, said = _tested(path, work)
        last = said.strip().splitlines()[-1:] or ["nothing was said"]
        if code is None and len(work.items) > before:
            raise OutOfTime(f"{path.name}: {len(work.items)} tests have passed")
        if code is None:
            work.fail(f"{path.name}: not done in time: {said[-1500:]}")
        elif code == NOTHING_COLLECTED and not before:
            work.fail(f"{path.name}: no test ran")
        elif code not in (0, NOTHING_COLLECTED):
            work.fail(f"{path.name}: {last[0]}: {' '.join(said[-3000:].split())}")

    return run


def _tested(path: Path, work: Work) -> tuple[int | None, str]:
    """pytest's exit status, None where it had to be ended, and what it said."""
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    several = ["-n", str(processes)] if find_spec("xdist") and processes > 1 else []
    with TemporaryDirectory() as folder:
        left_out, passed = Path(folder) / "left_out", Path(folder) / "passed"
        left_out.write_text("\n".join(work.items), encoding="utf-8")
        passed.touch()
        notes = ["-p", "bench.gpu.passed", f"--left-out={left_out}", f"--passed={passed}"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=20"]

        def note() -> None:
            names = passed.read_text(encoding="utf-8").splitlines()
            work.items |= dict.fromkeys(names, "passed")
            work.save()

        return _finished([*command, *notes, *several, str(path)], work.left, note)


def _finished(command: list[str], seconds: float, note: Callable[[], None]) -> tuple[int | None, str]:
    """The exit status, None where it had to be ended, and what was said; `note` is called every few seconds."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    end = time.monotonic() + min(max(seconds, 1.0), LONGEST)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    while True:
        try:
            said, _ = process.communicate(timeout=max(min(NOTED_EVERY, end - time.monotonic()), 0.0))
            note()
            return process.returncode, said
        except subprocess.TimeoutExpired:
            note()
        if time.monotonic() >= end:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            note()
            return None, said
