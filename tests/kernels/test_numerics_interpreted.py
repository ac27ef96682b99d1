"""Runs numerics/ under Triton's interpreter, in a process of its own: what TRITON_INTERPRET says is read at import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="numerics/ is collected in this run itself")
def test_numerics_hold_under_the_interpreter():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-n", str(os.cpu_count()), "numerics"]
    done = subprocess.run(
        command, cwd=HERE, env=environment | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout or "[100%]" in done.stdout, done.stdout
