"""Where the kernels run: on the GPU, or on the CPU under the interpreter. Every kernel that can run is taken."""

import pytest

from pccompile.backends import triton
from pccompile.backends.executables import as_it_is
from pccompile.kernels.devices import interpreted


@pytest.fixture
def device() -> str:
    return "cpu" if interpreted() else "cuda"


@pytest.fixture(autouse=True)
def every_kernel_that_can_run_and_operators_beside_them(monkeypatch):
    monkeypatch.setenv("PCCOMPILE_KERNELS", "always")
    monkeypatch.setattr(triton, "_rest", lambda kinds: as_it_is)
