"""Runs numerics/ under Triton's interpreter."""

from pathlib import Path

import pytest
from interpreter import INTERPRETED, assert_passes


@pytest.mark.skipif(INTERPRETED, reason="numerics/ is collected in this run itself")
def test_what_the_tuner_launches_runs_under_the_interpreter():
    assert_passes(Path(__file__).parent / "numerics")
