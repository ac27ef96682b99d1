"""Where the kernels run: on the GPU, or on the CPU under the interpreter."""

import pytest

from pccompile.kernels.devices import interpreted


@pytest.fixture
def device() -> str:
    return "cpu" if interpreted() else "cuda"
