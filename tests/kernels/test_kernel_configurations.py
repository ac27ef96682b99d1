"""The tables of configurations, and what a machine that cannot run the kernels is told."""

import json
import os
import subprocess
import sys
from itertools import product

import pytest

from pccompile.kernels.devices import ARCHITECTURES
from pccompile.kernels.linear_error import configurations as error_configurations
from pccompile.kernels.linear_predict import configurations as predict_configurations

TABLES = {"linear_predict": predict_configurations, "linear_error": error_configurations}


@pytest.mark.parametrize("operation", TABLES)
def test_every_architecture_has_both_sizes_for_every_arithmetic(operation):
    table = TABLES[operation].CONFIGURATIONS
    for architecture, precision in product(ARCHITECTURES, ("half", "tf32", "ieee")):
        assert set(table[architecture][precision]) == {"large", "small"}


def test_large_tiles_are_for_launches_that_fill_the_device():
    large, small = (predict_configurations.CONFIGURATIONS["sm_90"]["half"][size] for size in ("large", "small"))
    assert predict_configurations.configuration_for("sm_90", "half", 8192, 4096) == large
    assert predict_configurations.configuration_for("sm_90", "half", 64, 1000) == small
    large, small = (error_configurations.CONFIGURATIONS["sm_90"]["half"][size] for size in ("large", "small"))
    assert error_configurations.configuration_for("sm_90", "half", 8192, 4096, 4096) == large
    assert error_configurations.configuration_for("sm_90", "half", 64, 100, 100) == small


def test_tensors_on_the_cpu_are_refused_without_the_interpreter():
    program = """
import json, torch
from pccompile.errors import UsageError
from pccompile.kernels import linear_error, linear_predict
x, said = torch.ones(2, 2), []
for call in (lambda: linear_predict(x, x), lambda: linear_error(x, None, x, x)):
    try:
        call()
    except UsageError as error:
        said.append(str(error))
print(json.dumps(said))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert len(said) == 2 and all("cannot run on cpu" in words and "TRITON_INTERPRET=1" in words for words in said)
