"""Runs numerics/, models on the Triton back end, under Triton's interpreter."""

from pathlib import Path

import pytest
from interpreter import INTERPRETED, assert_passes


@pytest.mark.skipif(INTERPRETED, reason="numerics/ is collected in this run itself")
def test_models_train_as_on_the_eager_back_end_under_the_interpreter():
    assert_passes(Path(__file__).parent / "numerics")
