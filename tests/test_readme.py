"""What the README prints is what the code prints, and the examples run."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def output_of(example: str) -> str:
    done = subprocess.run([sys.executable, ROOT / "examples" / example], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_readme_shows_the_stages_as_the_example_prints_them():
    readme = (ROOT / "README.md").read_text()
    shown = readme.split("<!-- stages -->\n```text\n")[1].split("\n```")[0]
    assert shown == output_of("stages.py").strip()
    assert (ROOT / "examples" / "stages.py").read_text().strip() in readme


def test_the_training_example_trains_and_is_bit_equal():
    pytest.importorskip("sklearn")
    lines = output_of("training.py").splitlines()
    assert lines[-2].split() == ["all", "0.000e+00", "0.000e+00", "yes"]
    assert float(lines[-1].split()[-1].rstrip("%")) > 85
