"""Every launch function is compiled ahead of time, and counts what it launches."""

import re
from pathlib import Path

import pytest
from interpreter import INTERPRETED
from recorded import recorded
from shipped import OPERATIONS, cases_of, launches_of

import pccompile.kernels
from pccompile.kernels import counting_launches


def test_every_launch_function_is_among_the_launches():
    folder = Path(pccompile.kernels.__file__).parent
    functions = {n for file in folder.glob("*/*.py") for n in re.findall(r"^def (launch_\w+)", file.read_text(), re.M)}
    texts = " ".join(file.read_text() for file in Path(__file__).parent.glob("launches_*.py"))
    assert functions and functions <= set(re.findall(r"\blaunch_\w+", texts))


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not launched through Triton")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_launch_is_counted(operation):
    met = set()
    for case in cases_of(operation):
        if case.launch not in met:
            met.add(case.launch)
            with counting_launches() as counted:
                launched = recorded(launches_of(operation)[case.launch], case)
            assert counted.total() == len(launched) > 0
