"""Where the kernels run: on the GPU, or on the CPU under the interpreter. Every kernel that can run is taken."""

from contextlib import nullcontext

import pytest
import torch

from pccompile.backends import choice, learned_recurrences, recurrences, triton
from pccompile.backends.executables import as_it_is
from pccompile.kernels.devices import interpreted


@pytest.fixture
def device() -> str:
    return "cpu" if interpreted() else "cuda"


@pytest.fixture(autouse=True)
def every_kernel_that_can_run_and_operators_beside_them(monkeypatch):
    monkeypatch.setenv("PCCOMPILE_KERNELS", "always")
    monkeypatch.setattr(triton, "_rest", lambda kinds: as_it_is)


@pytest.fixture
def every_time_a_microsecond(monkeypatch, tmp_path):
    """Kernels are chosen by measurement, as on a GPU, of one call each; nothing is recorded, all times are equal."""

    class Recorder:
        def __init__(self, device):
            self.device = device

        def record(self, function, inputs):
            return lambda: function(list(inputs)), ()

    monkeypatch.setenv("PCCOMPILE_KERNELS", "measured")
    monkeypatch.setenv("PCCOMPILE_CACHE_DIR", str(tmp_path))
    for module in (choice, recurrences, learned_recurrences):
        monkeypatch.setattr(module, "is_on_gpu", lambda kinds: True)
    monkeypatch.setattr(choice, "_seconds", lambda replay: replay() or 1e-6)
    monkeypatch.setattr(choice, "CudaRecorder", Recorder)
    for often in ("_CALLS", "_WARM_UPS", "_REPETITIONS"):
        monkeypatch.setattr(choice, often, 1)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
